"""Trains the float32 twin of an integer network: same graph, same initial weights, same batches, same schedule.

    intseg data batches --config FILE --data DIR --initial initial.safetensors |
        python twin.py --initial initial.safetensors --out DIR [--norm usual|l1]

The graph comes with the batches, so the twin is the integer network's definition by construction.
"""

import argparse
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
        self.decay, self.eps, self.seen = decay, eps, False

    def forward(self, x):
        column = (1, -1, 1, 1)
        mean, deviation = self.running_mean, self.running_deviation
        if self.training:
            mean = x.mean((0, 2, 3))
            deviation = (x - mean.view(column)).abs().mean((0, 2, 3))
            # The first step's statistics are taken as they are, as the integer network does.
            decay, self.seen = (self.decay if self.seen else 1.0), True
            with torch.no_grad():
                self.running_mean.lerp_(mean, decay)
                self.running_deviation.lerp_(deviation, decay)
        scale = self.weight / (SIGMA * deviation + self.eps)
        return (x - mean.view(column)) * scale.view(column) + self.bias.view(column)


class Twin(nn.Module):
    """A graph as `intseg data batches` describes it."""

    def __init__(self, graph, initial, norm):
        super().__init__()
        self.graph, self.layers = graph, nn.ModuleDict()
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
        values, graph = [], self.graph
        for node in graph["nodes"]:
            kind, spec = describe(node["op"])
            inputs = [values[i] for i in node["inputs"]]
            layer = self.layers[key(node)] if key(node) in self.layers else None
            if kind == "image":
                y = x
            elif kind == "conv":
                y = layer(inputs[0])
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
                y = F.dropout(inputs[0], spec["drop_256"] / 256, self.training)
            else:
                raise ValueError(f"unknown operator {kind}")
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


def scores(matrix):
    """mIoU over the classes that occur, and pixel accuracy, in per cent."""
    right = numpy.diag(matrix)
    union = matrix.sum(0) + matrix.sum(1) - right
    return 100 * (right[union > 0] / union[union > 0]).mean(), 100 * right.sum() / matrix.sum()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--initial", required=True, help="initial weights, as intseg writes them")
    parser.add_argument("--out", required=True, type=Path, help="folder for the log and the trained weights")
    parser.add_argument("--norm", choices=("usual", "l1"), default="usual", help="batch normalisation")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--eval-every", type=int, default=0, help="steps between evaluations; 0: at the end alone")
    parser.add_argument("--batches", type=Path, help="the record; the standard input when not given")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    stream = open(options.batches, "rb") if options.batches else sys.stdin.buffer
    header = json.loads(stream.readline())
    shape, steps, classes = header["batch"], header["steps"], header["classes"]
    n, h, w = shape["n"], shape["h"], shape["w"]
    torch.manual_seed(0)
    network = Twin(header["graph"], load_file(options.initial), options.norm)
    network = network.to(memory_format=torch.channels_last).train()
    descent = Descent(network, header["momentum_q15"] / 2**15, header["decay_q32"] / 2**32)
    class_weights = torch.tensor(header["class_weights_q8"][0]) / 256
    options.out.mkdir(parents=True, exist_ok=True)
    log = open(options.out / "log.jsonl", "w", buffering=1)
    started, losses = time.monotonic(), []
    for step in range(1, steps + 1):
        frame = stream.read(n * h * w * 4)
        if len(frame) != n * h * w * 4:
            sys.exit(f"the record ends before step {step}")
        images = numpy.frombuffer(frame, numpy.int8, n * h * w * 3).reshape(n, h, w, 3)
        labels = numpy.frombuffer(frame, numpy.uint8, n * h * w, n * h * w * 3).reshape(n, h, w)
        out = network(prepared(images.copy()))
        loss = F.cross_entropy(out, torch.from_numpy(labels.astype(numpy.int64)), class_weights, ignore_index=255)
        loss.backward()
        descent.step(header["lr_q32"][step - 1] / 2**32)
        losses.append(loss.item())
        if step % 20 == 0 or step == steps:
            row = dict(event="step", step=step, loss=sum(losses) / len(losses), seconds=time.monotonic() - started)
            losses = []
            print(json.dumps(row), file=log)
        if step == steps or options.eval_every and step % options.eval_every == 0:
            miou, accuracy = scores(evaluate(network, header["val"], classes))
            row = dict(event="eval", step=step, miou=miou, pixel_accuracy=accuracy, seconds=time.monotonic() - started)
            print(json.dumps(row), file=log)
            print(f"step {step}: mIoU {miou:.2f}, pixel accuracy {accuracy:.2f}", flush=True)
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, options.out / "twin.safetensors")


if __name__ == "__main__":
    main()
