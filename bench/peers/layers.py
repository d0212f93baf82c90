"""Counts the multiply-accumulates of a network in PyTorch, and holds its layers against those of intseg.

    layers.py [--intseg PATH]

Exits with 1 where a network of the comparison has other convolutions in intseg than in PyTorch.
"""

import argparse
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import torch
from torch import nn

from networks import build

INTSEG = Path(__file__).parents[2] / "target/release/intseg"
# Network, size, width.
COMPARED = [("deeplabv3-resnet50", "513x513", 1.0), ("deeplabv3-resnet50", "321x321", 1.0),
            ("fcn8s-vgg16", "513x513", 1.0), ("fcn8s-vgg16", "320x320", 1.0), ("fcn8s-vgg16-bn", "120x160", 0.25)]


def convolutions(network, size, width=1.0):
    """For each convolution of one image: (rows, columns, channels) of its output, weights, products, useful products.

    A product is useful where its tap does not fall on padding. No memory is taken: tensors have shapes only.
    """
    found = []

    def count(layer, inputs, output):
        *_, height, width = inputs[0].shape
        *_, channels, rows, columns = output.shape
        weights = layer.weight.numel()
        useful = weights * taps(layer, 0, height, rows) * taps(layer, 1, width, columns)
        kernel = layer.kernel_size[0] * layer.kernel_size[1]
        found.append(((rows, columns, channels), weights, weights * rows * columns, useful // kernel))

    with torch.device("meta"):
        model = build(network, width).eval()
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d):
                layer.register_forward_hook(count)
        model(torch.empty(1, 3, *map(int, size.split("x"))))
    return found


def taps(layer, axis, length_in, length_out):
    """Taps inside the image along one axis, summed over the output's positions."""
    stride, padding, dilation = layer.stride[axis], layer.padding[axis], layer.dilation[axis]
    positions = (o * stride - padding + k * dilation for o in range(length_out) for k in range(layer.kernel_size[axis]))
    return sum(0 <= position < length_in for position in positions)


def useful_products(network, size, width=1.0):
    return sum(useful for *_, useful in convolutions(network, size, width))


def differences(intseg, network, size, width):
    """Convolutions that only one side has, as counts of (shape of the output, weights, products)."""
    command = [intseg, "inspect", "--arch", network, "--size", size, "--width", str(width), "--json"]
    answer = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    ours = Counter((tuple(layer["shape"]), layer["weight_bytes"], layer["macs"])
                   for layer in answer["layers"] if layer["macs"])
    theirs = Counter(layer[:3] for layer in convolutions(network, size, width))
    return ours - theirs, theirs - ours


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--intseg", default=str(INTSEG))
    options = parser.parse_args()
    differ = False
    for network, size, width in COMPARED:
        layers = convolutions(network, size, width)
        products, useful = sum(layer[2] for layer in layers), sum(layer[3] for layer in layers)
        print(f"{network}, {size}, width {width:g}: {len(layers)} convolutions, {products / 1e9:.3f} GMAC, "
              f"{useful / 1e9:.3f} on taps inside the image")
        for side, only in zip(("intseg", "PyTorch"), differences(options.intseg, network, size, width)):
            for (shape, weights, macs), count in only.items():
                differ = True
                print(f"  only in {side}: {count} of output {shape}, {weights} weights, {macs} products")
    sys.exit(differ)


if __name__ == "__main__":
    main()
