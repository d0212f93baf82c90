"""Writes what PyTorch and torchvision make of some networks, and what these networks say of an image.

    torch_files.py DIR

DIR gets weights as torch.save writes them, ONNX models of both exporters, an image, and each network's scores of it
before they are resized to the image. A line of JSON on the standard output describes a file.
"""

import json
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
import torchvision
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[2] / "bench/ptq"))
import camvid  # noqa: E402
import networks  # noqa: E402

CLASSES, SIZE = 5, (64, 96)


def prepared(network, image):
    """The network as if it had been trained: normalisations with factors, offsets and statistics of their own."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, 0, 0.1)
            module.momentum = None
    network.train()
    with torch.no_grad():
        for shift in range(2):
            network(torch.cat([image, image.roll(7 + shift, 3).flip(2)]))
    return network.eval()


def scores_of(network, image, seen):
    """The scores that the network resizes to the image's size, or its output where it does not."""
    seen.clear()
    with torch.no_grad():
        output = network(image)
    return seen[-1] if seen else output


def main(folder):
    torch.manual_seed(0)
    torch.set_num_threads(2)
    pixels = np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)
    pixels[:, : SIZE[1] // 2] //= 4
    pixels.tofile(folder / "image.rgb")
    image = torch.from_numpy(camvid.normalised(pixels))

    def described(name, file, scores, arch=None):
        values = scores.permute(0, 2, 3, 1).contiguous().numpy()
        values.astype("<f4").tofile(folder / f"{name}.f32")
        print(json.dumps({"file": file, "arch": arch, "scores": f"{name}.f32", "shape": values.shape}), flush=True)

    def saved(name, network, scores, arch, formats=("zip", "legacy")):
        for format in formats:
            file = f"{name}_{format}.pth"
            torch.save(network.state_dict(), folder / file, _use_new_zipfile_serialization=format == "zip")
            described(name, file, scores, arch)

    # A file of these has 150 MB.
    for name, format in (("deeplabv3_resnet50", "zip"), ("fcn_resnet50", "legacy")):
        build = getattr(torchvision.models.segmentation, name)
        network = prepared(build(weights=None, weights_backbone=None, num_classes=CLASSES, aux_loss=True), image)
        with torch.no_grad():
            scores = network.classifier(network.backbone(image)["out"])
        saved(name, network, scores, name.replace("_", "-"), [format])

    seen = []
    resize = networks.resize
    networks.resize = lambda x, size: (seen.append(x), resize(x, size))[1]
    for name in ("fcn8s", "deeplabv3", "unet"):
        network = prepared(networks.build(name, CLASSES, 0.125), image)
        scores = scores_of(network, image, seen)
        if name == "fcn8s":
            saved(name, network, scores, "fcn8s-vgg16-bn")
        for exporter in ("script", "dynamo"):
            file = f"{name}_{exporter}.onnx"
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                torch.onnx.export(network, (image,), str(folder / file), dynamo=exporter == "dynamo", external_data=False,
                                  **({"verbose": False} if exporter == "dynamo" else {}))
            described(name, file, scores)

    # torchvision's own VGG-16 with an eighth of its channels: what a segmentation network starts from.
    widths = [v if v == "M" else v // 8 for v in torchvision.models.vgg.cfgs["D"]]
    vgg = torchvision.models.VGG(torchvision.models.vgg.make_layers(widths, batch_norm=True), init_weights=False)
    vgg.classifier = nn.Sequential()
    for format in ("zip", "legacy"):
        file = folder / f"vgg16_bn_{format}.pth"
        torch.save(vgg.state_dict(), file, _use_new_zipfile_serialization=format == "zip")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
