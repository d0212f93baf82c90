"""Runs `fcn-tiny` in PyTorch with the weights of `intseg export --format safetensors`.

    torch_safetensors.py WEIGHTS.safetensors IMAGE CLASSES.raw

CLASSES.raw gets a byte a pixel.
"""

import sys

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file
from torch.nn import functional as F

weights, image, output = sys.argv[1:]
weights = load_file(weights)
pixels = np.asarray(Image.open(image).convert("RGB")).astype(np.float32)
x = torch.from_numpy((pixels - 128) / 128).permute(2, 0, 1)[None]


def conv(x, name, **settings):
    return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], **settings)


def resize(x, like):
    return F.interpolate(x, size=like.shape[-2:], mode="bilinear", align_corners=False)


half = conv(x, "conv1.bn", stride=2, padding=1).relu()
y = conv(half, "conv2.bn", stride=2, padding=1).relu()
for name, dilation in (("conv3.bn", 1), ("conv4.bn", 2), ("conv5.bn", 4)):
    y = conv(y, name, padding=dilation, dilation=dilation).relu()
skip = conv(half, "score_half")
scores = resize(resize(conv(y, "score"), skip) + skip, x)
scores.argmax(1)[0].numpy().astype(np.uint8).tofile(output)
