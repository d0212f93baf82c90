"""Trains one float network on CamVid and saves it as state dict and as ONNX file, at first, at last and in between.

    train.py NETWORK --data DIR --out DIR [--init FILE] [--steps N] [--batch N] [--crop N] [--lr X] [--width X] [--save-every N] [--bf16]

--bf16 computes convolutions in bfloat16 while training; the weights stay float32, and so do evaluation and export.
"""

import argparse
import os
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn import functional as F

import camvid
from networks import NETWORKS, build

MEAN = torch.tensor(camvid.MEAN).view(1, 3, 1, 1)
STD = torch.tensor(camvid.STD).view(1, 3, 1, 1)


class Batches:
    """Random windows of the training images, resized to one square, half of them mirrored."""

    SCALES = (0.7, 1.6)

    def __init__(self, data, batch, crop, seed):
        self.images = [camvid.read_image(camvid.image_path(data, name)) for name in camvid.names(data, "train")]
        self.truths = [camvid.read_truth(data, name) for name in camvid.names(data, "train")]
        self.batch, self.crop = batch, crop
        self.random, self.order = np.random.default_rng(seed), []

    def class_weights(self):
        """The inverse roots of the classes' frequencies, 1 on the average."""
        counts = sum(np.bincount(truth.ravel(), minlength=256)[: camvid.CLASSES] for truth in self.truths)
        weights = 1 / np.sqrt(counts / counts.sum())
        return torch.from_numpy(weights / weights.mean()).float()

    def sample(self):
        if not self.order:
            self.order = list(self.random.permutation(len(self.images)))
        index = self.order.pop()
        height, width = self.truths[index].shape
        low, high = np.log(self.SCALES)
        side = min(int(self.crop / np.exp(self.random.uniform(low, high))), height, width)
        top, left = self.random.integers(height - side + 1), self.random.integers(width - side + 1)
        window = (slice(top, top + side), slice(left, left + side))
        image = torch.from_numpy(self.images[index][window].copy()).permute(2, 0, 1)[None].float() / 255
        truth = torch.from_numpy(self.truths[index][window].copy())[None, None].float()
        size = (self.crop, self.crop)
        image = F.interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=True)
        truth = F.interpolate(truth, size=size, mode="nearest-exact")
        if self.random.random() < 0.5:
            image, truth = image.flip(3), truth.flip(3)
        # Brightness and contrast.
        image = (image - 0.5) * self.random.uniform(0.8, 1.2) + 0.5 + self.random.uniform(-0.1, 0.1)
        return image, truth

    def next(self):
        images, truths = zip(*(self.sample() for _ in range(self.batch)))
        images = (torch.cat(images) - MEAN) / STD
        return images.contiguous(memory_format=torch.channels_last), torch.cat(truths)[:, 0].long()


@torch.no_grad()
def evaluate(network, data):
    """mIoU over the validation images at their size."""
    network.eval()
    matrix = 0
    for name in camvid.names(data, "val"):
        image = camvid.normalised(camvid.read_image(camvid.image_path(data, name)))
        guess = network(torch.from_numpy(image)).argmax(1)[0].numpy()
        matrix = matrix + camvid.confusion(camvid.read_truth(data, name), guess)
    network.train()
    return camvid.mean_iou(matrix)


def save(network, path):
    """Writes path.pth and path.onnx, each in one move: a reader never finds half of one."""
    network.eval()
    saved = {key: value.contiguous() for key, value in network.state_dict().items()}
    parts = {suffix: path.with_name(f"{path.name}.part{suffix}") for suffix in (".pth", ".onnx")}
    torch.save(saved, parts[".pth"])
    image = torch.zeros(1, 3, *camvid.SIZE)
    with warnings.catch_warnings():
        # That sizes become constants is the intention, and so is the exporter that reaches opset 17.
        warnings.simplefilter("ignore")
        torch.onnx.export(network, (image,), str(parts[".onnx"]), input_names=["image"], output_names=["logits"],
                          opset_version=17, dynamo=False)
    for suffix, part in parts.items():
        os.replace(part, path.with_name(path.name + suffix))
    network.train()


def train(options):
    torch.manual_seed(options.seed)
    path = options.out / options.network
    network = build(options.network, width=options.width)
    if options.init:
        network.start(load_file(options.init), camvid.MEAN, camvid.STD)
    network = network.to(memory_format=torch.channels_last).train()
    save(network, path)
    if not options.steps:
        return
    batches = Batches(options.data, options.batch, options.crop, options.seed)
    weights = batches.class_weights()
    optimiser = torch.optim.AdamW(network.parameters(), lr=options.lr, weight_decay=options.weight_decay)
    losses, started, warmup = [], time.monotonic(), min(100, options.steps // 10 + 1)
    for step in range(1, options.steps + 1):
        optimiser.param_groups[0]["lr"] = options.lr * min(step / warmup, (1 - (step - 1) / options.steps) ** 0.9)
        images, truths = batches.next()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=options.bf16):
            scores = network(images)
        loss = F.cross_entropy(scores.float(), truths, weights, ignore_index=camvid.IGNORED)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
        if step % 10 == 0:
            print(f"step {step}/{options.steps}: loss {np.mean(losses):.4f}, {time.monotonic() - started:.0f} s", flush=True)
            losses = []
        if step % options.save_every == 0 or step == options.steps:
            miou = evaluate(network, options.data)
            save(network, path)
            print(f"step {step}/{options.steps}: val mIoU {miou:.2f}, saved", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--out", required=True, type=Path, help="folder of NETWORK.pth and NETWORK.onnx")
    parser.add_argument("--init", type=Path, help="fcn_tiny: weights of `intseg export --format safetensors`")
    parser.add_argument("--width", type=float, default=0.25)
    parser.add_argument("--steps", type=int, default=3000, help="0: initial weights alone")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--crop", type=int, default=240)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=1e-2)
    parser.add_argument("--save-every", type=int, default=500, help="steps from one evaluation and saving to the next")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--bf16", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.out.mkdir(parents=True, exist_ok=True)
    train(options)


if __name__ == "__main__":
    main()
