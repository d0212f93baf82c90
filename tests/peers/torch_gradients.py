"""Writes the gradients that PyTorch's autograd finds for a network's first batch.

    torch_gradients.py RECORD INITIAL.safetensors GRADIENTS.safetensors

RECORD and INITIAL are those of `intseg data batches`; the network is the float twin of bench/parity, with batch
normalisation by the mean absolute deviation.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[2] / "bench/parity"))
from twin import Twin, key, prepared  # noqa: E402

record, initial, output = sys.argv[1:]
with open(record, "rb") as stream:
    header = json.loads(stream.readline())
    n, h, w = (header["batch"][k] for k in "nhw")
    images = np.frombuffer(stream.read(n * h * w * 3), np.int8).reshape(n, h, w, 3)
    labels = np.frombuffer(stream.read(n * h * w), np.uint8).reshape(n, h, w)
network = Twin(header["graph"], load_file(initial), "l1").train()
weights = torch.tensor(header["class_weights_q8"][0]) / 256
loss = F.cross_entropy(
    network(prepared(images.copy())), torch.from_numpy(labels.astype(np.int64)), weights, ignore_index=255
)
loss.backward()
gradients = {}
for node in header["graph"]["nodes"]:
    layer = network.layers[key(node)] if key(node) in network.layers else None
    if isinstance(layer, torch.nn.Conv2d):
        gradients[node["name"]] = layer.weight.grad.permute(2, 3, 1, 0).contiguous()
save_file(gradients, output)
