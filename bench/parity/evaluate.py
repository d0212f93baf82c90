"""Scores in float what integer training left: the masters of a checkpoint, with their running statistics.

    intseg data batches --config FILE --data DIR --steps 1 | python evaluate.py RUN/checkpoint.safetensors

Prints mIoU and pixel accuracy with the masters as they are, and with convolution weights rounded to their 8 bits.
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
    sys.stdin.buffer.read()
    with safe_open(sys.argv[1], "pt") as file:
        for rounded in (False, True):
            network = restored(header["graph"], file, rounded)
            miou, accuracy = twin.scores(twin.evaluate(network, header["val"], header["classes"]))
            print(f"{'weights in 8 bits' if rounded else 'masters'}: mIoU {miou:.2f}, pixel accuracy {accuracy:.2f}")


if __name__ == "__main__":
    main()
