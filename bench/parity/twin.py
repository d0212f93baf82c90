"""Trains the float32 twin of an integer network: same graph, same initial weights, same batches, same schedule.

    intseg data batches --config FILE --data DIR --initial initial.safetensors |
        python twin.py --initial initial.safetensors --out DIR [--norm usual|l1]

The graph comes with the batches, so the twin is the integer network's definition by construction. Evaluations at the end:
with running statistics, and with statistics measured over the record's last batches, as integer models are deployed;
the same for the average of the weights over the steps that integer models average.
"""

import argparse
import copy
import json
import math
import sys
import time
from pathlib import Path

import numpy
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

SIGMA = math.sqrt(math.pi / 2)


class L1Norm(nn.Module):
    """Batch normalisation with the mean absolute deviation in place of the root of the variance."""

    def __init__(self, channels, decay=1 / 16, eps=1e-5):
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_deviation", torch.zeros(channels))
        self.decay, self.eps, self.seen = decay, eps, 0

    def forward(self, x):
        column = (1, -1, 1, 1)
        mean, deviation = self.running_mean, self.running_deviation
        if self.training:
            mean = x.mean((0, 2, 3))
            deviation = (x - mean.view(column)).abs().mean((0, 2, 3))
            # The first step's statistics are taken as they are, as the integer network does.
            self.seen += 1
            decay = 1 / self.seen if self.decay is None else self.decay if self.seen > 1 else 1.0
            with torch.no_grad():
                self.running_mean.lerp_(mean, decay)
                self.running_deviation.lerp_(deviation, decay)
        scale = self.weight / (SIGMA * deviation + self.eps)
        return (x - mean.view(column)) * scale.view(column) + self.bias.view(column)


class Quantization:
    """Weights and activations rounded as the integer network rounds them, with straight-through gradients.

    The step is a power of two that the largest value determines, of a tensor or (weights) of each output channel; 7 bits
    and a sign for weights, 8 bits for activations after ReLU. Errors, gradients and 16-bit streams stay float.
    """

    def __init__(self, graph, weights, first, last):
        self.weights = weights
        nodes = graph["nodes"]
        image = {i for i, node in enumerate(nodes) if describe(node["op"])[0] == "image"}
        convs = {i for i, node in enumerate(nodes) if describe(node["op"])[0] == "conv"}
        starts = {i for i in convs if node_inputs(nodes, i) & image}
        # A layer is its convolution with the normalisation that reads it.
        outputs = starts | {i for i in range(len(nodes)) if node_inputs(nodes, i) & starts}
        # The convolutions nearest to the logits, of which networks with skips have several.
        ends, open_nodes = set(), {graph["logits"]}
        while open_nodes:
            node = open_nodes.pop()
            ends |= {node} & convs
            open_nodes |= set() if node in convs else node_inputs(nodes, node)
        read = set().union(*(node_inputs(nodes, end) for end in ends))
        self.float_weights = (set() if first else starts) | (set() if last else ends)
        self.float_outputs = (set() if first else outputs) | (set() if last else read)

    def weight(self, index, weight):
        if index in self.float_weights or self.weights == "no":
            return weight
        magnitudes = weight.detach().abs()
        largest = magnitudes.amax((1, 2, 3), keepdim=True) if self.weights == "channel" else magnitudes.max()
        return rounded(weight, largest, 127)

    def activation(self, index, y):
        return y if index in self.float_outputs else rounded(y, y.detach().max(), 255)


def rounded(x, largest, limit):
    """`x` in the smallest power-of-two steps of which `limit` reach `largest`; the gradient passes."""
    step = torch.exp2(torch.ceil(torch.log2(largest.clamp_min(1e-20) / limit)))
    return x + (torch.round(x.detach() / step) * step - x.detach())


def node_inputs(nodes, index):
    return set(nodes[index]["inputs"])


class Twin(nn.Module):
    """A graph as `intseg data batches` describes it."""

    def __init__(self, graph, initial, norm, quantization=None):
        super().__init__()
        self.graph, self.layers, self.drops, self.quantization = graph, nn.ModuleDict(), True, quantization
        channels = []
        for node in graph["nodes"]:
            kind, spec = describe(node["op"])
            c_in = channels[node["inputs"][0]] if node["inputs"] else 3
            if kind == "conv":
                shape = dict(stride=spec["stride"], dilation=spec["dilation"], padding=spec["padding"])
                conv = nn.Conv2d(c_in, spec["channels"], spec["kernel"], bias=spec["output"] != "accumulators", **shape)
                with torch.no_grad():
                    conv.weight.copy_(initial[node["name"] + ".weight"])
                    if conv.bias is not None:
                        conv.bias.copy_(initial[node["name"] + ".bias"])
                self.layers[key(node)] = conv
                c_in = spec["channels"]
            elif kind == "batch_norm":
                self.layers[key(node)] = L1Norm(c_in) if norm == "l1" else nn.BatchNorm2d(c_in, momentum=1 / 16)
            elif kind == "concat":
                c_in = sum(channels[i] for i in node["inputs"])
            channels.append(c_in)

    def forward(self, x):
        values, graph, quantization = [], self.graph, self.quantization
        for index, node in enumerate(graph["nodes"]):
            kind, spec = describe(node["op"])
            inputs = [values[i] for i in node["inputs"]]
            layer = self.layers[key(node)] if key(node) in self.layers else None
            if kind == "image":
                y = x
            elif kind == "conv":
                weight = quantization.weight(index, layer.weight) if quantization else layer.weight
                y = layer._conv_forward(inputs[0], weight, layer.bias)
                y = F.relu(y) if spec["output"] == "relu" else y
            elif kind == "batch_norm":
                y = layer(inputs[0])
                y = F.relu(y) if spec["relu"] else y
            elif kind == "max_pool":
                y = F.max_pool2d(inputs[0], spec["kernel"], spec["stride"], spec["padding"], ceil_mode=spec["ceil"])
            elif kind == "global_average_pool":
                y = inputs[0].mean((2, 3), keepdim=True)
            elif kind == "resize_like":
                y = self.resize(inputs[0], inputs[1].shape[-2:])
            elif kind == "add":
                y = inputs[0] + inputs[1]
                y = F.relu(y) if spec["relu"] else y
            elif kind == "concat":
                y = torch.cat(inputs, 1)
            elif kind == "dropout":
                y = F.dropout(inputs[0], spec["drop_256"] / 256, self.training and self.drops)
            else:
                raise ValueError(f"unknown operator {kind}")
            if quantization and (spec.get("relu") or spec.get("output") == "relu"):
                y = quantization.activation(index, y)
            values.append(y)
        return self.resize(values[graph["logits"]], x.shape[-2:])

    def resize(self, x, size):
        return F.interpolate(x, size=tuple(size), mode="bilinear", align_corners=self.graph["align_corners"])


def describe(op):
    """An operator's name and its settings."""
    return (op, {}) if isinstance(op, str) else next(iter(op.items()))


def key(node):
    """A node's name as PyTorch allows it."""
    return node["name"].replace(".", "_")


class Descent:
    """SGD as intseg does it: `v ← m·v + lr·(g + decay·w)`, `w ← w − v`, decay on convolution weights alone."""

    def __init__(self, network, momentum, decay):
        self.parameters = [(p, decay if p.dim() == 4 else 0.0, torch.zeros_like(p)) for p in network.parameters()]
        self.momentum = momentum

    @torch.no_grad()
    def step(self, lr):
        for p, decay, velocity in self.parameters:
            velocity.mul_(self.momentum).add_(p.grad, alpha=lr)
            if decay:
                velocity.add_(p, alpha=lr * decay)
            p.sub_(velocity)
            p.grad = None


def prepared(images):
    """Images `[N, H, W, 3]` of value − 128 as the network reads them."""
    return torch.from_numpy(images).permute(0, 3, 1, 2).float().div_(128).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def evaluate(network, files, classes):
    """The confusion matrix over images of full size, truth in rows."""
    network.eval()
    matrix = numpy.zeros((classes, classes), numpy.int64)
    for image, label in files:
        pixels = numpy.asarray(Image.open(image).convert("RGB")).astype(numpy.int16) - 128
        truth = numpy.asarray(Image.open(label))
        scores = network(prepared(pixels[None].astype(numpy.int8)))
        guess = scores.argmax(1)[0].numpy()
        valid = truth < classes
        matrix += numpy.bincount(truth[valid].astype(int) * classes + guess[valid], minlength=classes**2).reshape(
            classes, classes
        )
    network.train()
    return matrix


class Average:
    """The mean of a network's parameters over its last steps."""

    def __init__(self, network):
        self.count, self.sums = 0, [torch.zeros_like(p) for p in network.parameters()]

    @torch.no_grad()
    def add(self, network):
        self.count += 1
        for total, p in zip(self.sums, network.parameters(), strict=True):
            total.add_(p)

    @torch.no_grad()
    def network(self, network):
        network = copy.deepcopy(network)
        for total, p in zip(self.sums, network.parameters(), strict=True):
            p.copy_(total / self.count)
        return network


@torch.no_grad()
def measured(network, batches):
    """The network with statistics that are means over batches instead of running ones."""
    network = copy.deepcopy(network).train()
    for layer in network.layers.values():
        if isinstance(layer, nn.BatchNorm2d):
            layer.reset_running_stats()
            layer.momentum = None
        if isinstance(layer, L1Norm):
            layer.decay, layer.seen = None, 0
    network.drops = False
    for images in batches:
        network(images)
    return network


def scores(matrix):
    """mIoU over the classes that occur, and pixel accuracy, in per cent."""
    right = numpy.diag(matrix)
    union = matrix.sum(0) + matrix.sum(1) - right
    return 100 * (right[union > 0] / union[union > 0]).mean(), 100 * right.sum() / matrix.sum()


def finals(network, average, frames, header):
    """Scores of a trained network in its ways of being deployed."""
    frames = [prepared(images) for images, _ in frames]
    ways = {"running": network}
    if frames:
        ways["measured"] = measured(network, frames)
        if average.count:
            ways["averaged"] = measured(average.network(network), frames)
    return {way: scores(evaluate(each, header["val"], header["classes"])) for way, each in ways.items()}


def batches(stream, shape, count):
    """Images and labels of so many batches of the record."""
    n, h, w = shape["n"], shape["h"], shape["w"]
    for batch in range(count):
        frame = stream.read(n * h * w * 4)
        if len(frame) != n * h * w * 4:
            sys.exit(f"the record ends before batch {batch + 1} of {count}")
        images = numpy.frombuffer(frame, numpy.int8, n * h * w * 3).reshape(n, h, w, 3)
        labels = numpy.frombuffer(frame, numpy.uint8, n * h * w, n * h * w * 3).reshape(n, h, w)
        yield images.copy(), torch.from_numpy(labels.astype(numpy.int64))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--initial", required=True, help="initial weights, as intseg writes them")
    parser.add_argument("--out", required=True, type=Path, help="folder for the log and the trained weights")
    parser.add_argument("--norm", choices=("usual", "l1"), default="usual", help="batch normalisation")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--eval-every", type=int, default=0, help="steps between evaluations; 0: at the end alone")
    parser.add_argument("--batches", type=Path, help="the record; the standard input when not given")
    parser.add_argument("--quantize", choices=("no", "tensor", "channel"), default="no", help="weights' exponents; activations too")
    parser.add_argument("--float-first", action="store_true", help="leave the first layer unquantised")
    parser.add_argument("--float-last", action="store_true", help="leave the last layer unquantised")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    stream = open(options.batches, "rb") if options.batches else sys.stdin.buffer
    header = json.loads(stream.readline())
    steps, classes, graph = header["steps"], header["classes"], header["graph"]
    torch.manual_seed(0)
    quantization = None
    if options.quantize != "no":
        quantization = Quantization(graph, options.quantize, not options.float_first, not options.float_last)
    network = Twin(graph, load_file(options.initial), options.norm, quantization)
    network = network.to(memory_format=torch.channels_last).train()
    descent = Descent(network, header["momentum_q15"] / 2**15, header["decay_q32"] / 2**32)
    average, averaged = Average(network), set(header["averaged"])
    class_weights = torch.tensor(header["class_weights_q8"][0]) / 256
    options.out.mkdir(parents=True, exist_ok=True)
    log = open(options.out / "log.jsonl", "w", buffering=1)
    started, losses = time.monotonic(), []
    seconds = lambda: time.monotonic() - started
    for step, (images, labels) in enumerate(batches(stream, header["batch"], steps), 1):
        out = network(prepared(images))
        loss = F.cross_entropy(out, labels, class_weights, ignore_index=255)
        loss.backward()
        descent.step(header["lr_q32"][step - 1] / 2**32)
        losses.append(loss.item())
        if step in averaged:
            average.add(network)
        if step % 20 == 0 or step == steps:
            print(json.dumps(dict(event="step", step=step, loss=sum(losses) / len(losses), seconds=seconds())), file=log)
            losses = []
        if step < steps and options.eval_every and step % options.eval_every == 0:
            miou, accuracy = scores(evaluate(network, header["val"], classes))
            print(json.dumps(dict(event="eval", step=step, miou=miou, pixel_accuracy=accuracy, seconds=seconds())), file=log)
    frames = list(batches(stream, header["batch"], header["measured"]))
    for way, (miou, accuracy) in finals(network, average, frames, header).items():
        row = dict(event="eval", step=steps, way=way, miou=miou, pixel_accuracy=accuracy, seconds=seconds())
        print(json.dumps(row), file=log)
        print(f"step {steps}, {way} statistics: mIoU {miou:.2f}, pixel accuracy {accuracy:.2f}", flush=True)
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, options.out / "twin.safetensors")


if __name__ == "__main__":
    main()
