"""Scores in float what integer training left: the masters of a checkpoint, with their running statistics.

    intseg data batches --config FILE --data DIR --steps 0 | python evaluate.py RUN/checkpoint.safetensors

Prints mIoU and pixel accuracy with the masters as they are, with convolution weights rounded to their 8 bits, with
activations rounded to 8 bits, and with both; each with running statistics and with measured ones.
"""

import json
import sys

import torch
from safetensors import safe_open

import twin


def parameters(graph):
    """A checkpoint's parameters in its order, with the fractional bits of their masters."""
    for node in graph["nodes"]:
        kind, spec = twin.describe(node["op"])
        if kind == "conv":
            yield node["name"] + ".weight", 16
            if spec["output"] != "accumulators":
                yield node["name"] + ".bias", 8
        elif kind == "batch_norm":
            yield node["name"] + ".gamma", 8
            yield node["name"] + ".beta", 8


def restored(graph, file, rounded):
    """The twin with a checkpoint's values."""
    exponents = json.loads(file.metadata()["intseg"])["exponents"]
    values = {}
    for (name, bits), exponent in zip(parameters(graph), exponents, strict=True):
        steps = file.get_tensor(name + ".master").double() / 2.0**bits
        if steps.dim() == 4:
            steps = (steps.round().clamp(-127, 127) if rounded else steps).permute(3, 2, 0, 1)
        values[name] = (steps * 2.0**exponent).float().contiguous()
    network = twin.Twin(graph, values, "l1")
    norms = [node for node in graph["nodes"] if twin.describe(node["op"])[0] == "batch_norm"]
    for index, node in enumerate(norms):
        layer, state = network.layers[twin.key(node)], file.get_tensor(f"state.{index:04}").double() / 2**24
        with torch.no_grad():
            layer.weight.copy_(values[node["name"] + ".gamma"])
            layer.bias.copy_(values[node["name"] + ".beta"])
            layer.running_mean.copy_(state[: len(layer.weight)])
            layer.running_deviation.copy_(state[len(layer.weight) :])
    return network


def main():
    header = json.loads(sys.stdin.buffer.readline())
    graph = header["graph"]
    frames = [twin.prepared(images) for images, _ in twin.batches(sys.stdin.buffer, header["batch"], header["measured"])]
    for rounded in (False, True):
        for coarse in (False, True):
            with safe_open(sys.argv[1], "pt") as file:
                network = restored(graph, file, rounded)
            if coarse:
                network.quantization = twin.Quantization(graph, "no", True, True)
            names = ["weights in 8 bits"] * rounded + ["activations in 8 bits"] * coarse
            for way, deployed in (("running", network), ("measured", twin.measured(network, frames))):
                miou, accuracy = twin.scores(twin.evaluate(deployed, header["val"], header["classes"]))
                name = ", ".join(names or ["masters"])
                print(f"{name}, {way} statistics: mIoU {miou:.2f}, pixel accuracy {accuracy:.2f}", flush=True)


if __name__ == "__main__":
    main()
