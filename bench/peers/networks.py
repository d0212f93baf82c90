"""The networks of the comparison in PyTorch, layer for layer those of `intseg inspect`."""

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models import resnet
from torchvision.models.segmentation import deeplabv3_resnet50

VGG16 = (2, 2, 3, 3, 3)


class Block(resnet.Bottleneck):
    """A bottleneck whose ReLUs are calls: a module used twice cannot be quantised by every tool."""

    def forward(self, x):
        skip = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + skip)


def deeplab(classes):
    network = deeplabv3_resnet50(weights=None, weights_backbone=None, num_classes=classes, aux_loss=False)
    for module in network.modules():
        if isinstance(module, resnet.Bottleneck):
            module.__class__ = Block
    return network


class DeepLab(nn.Module):
    """Scores at the image's size from a normalised image."""

    def __init__(self, classes=21):
        super().__init__()
        network = deeplab(classes)
        self.backbone, self.classifier = network.backbone, network.classifier

    def forward(self, x):
        scores = self.classifier(self.backbone(x)["out"])
        return F.interpolate(scores, size=x.shape[-2:], mode="bilinear", align_corners=False)


class Fcn8s(nn.Module):
    """FCN-8s on VGG-16: 7x7 fc6, skips from pool3 and pool4, bilinear upsampling."""

    def __init__(self, classes=21, width=1.0, norm=False):
        super().__init__()
        c_in, stages = 3, []
        for stage, count in enumerate(VGG16):
            channels = int(min(64 << stage, 512) * width)
            layers = []
            for _ in range(count):
                layers.append(nn.Conv2d(c_in, channels, 3, padding=1, bias=not norm))
                layers += [nn.BatchNorm2d(channels)] * norm + [nn.ReLU(inplace=True)]
                c_in = channels
            stages.append(nn.Sequential(*layers, nn.MaxPool2d(2, ceil_mode=True)))
        self.stages = nn.ModuleList(stages)
        hidden = int(4096 * width)
        head = []
        for kernel in (7, 1):
            head.append(nn.Conv2d(c_in, hidden, kernel, padding=kernel // 2, bias=not norm))
            head += [nn.BatchNorm2d(hidden)] * norm + [nn.ReLU(inplace=True), nn.Dropout(0.5)]
            c_in = hidden
        self.head = nn.Sequential(*head, nn.Conv2d(hidden, classes, 1))
        self.score3 = nn.Conv2d(int(256 * width), classes, 1)
        self.score4 = nn.Conv2d(int(512 * width), classes, 1)

    def forward(self, x):
        size, features = x.shape[-2:], []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        x = self.head(x)
        for score, skip in ((self.score4, features[3]), (self.score3, features[2])):
            x = F.interpolate(x, size=skip.shape[-2:], mode="bilinear", align_corners=False) + score(skip)
        return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


class PaddedPool(nn.Module):
    """A pool that rounds up, without its flag: behind a ReLU, zeros at the far edges of odd sizes change no maximum."""

    def forward(self, x):
        height, width = x.shape[-2:]
        return F.max_pool2d(F.pad(x, (0, width % 2, 0, height % 2)) if height % 2 or width % 2 else x, 2)


def without_ceil_mode(network):
    for stage in getattr(network, "stages", ()):
        stage[-1] = PaddedPool()
    return network


def build(name, width=1.0):
    torch.manual_seed(0)
    return {
        "deeplabv3-resnet50": DeepLab,
        "fcn8s-vgg16": lambda: Fcn8s(width=width),
        "fcn8s-vgg16-bn": lambda: Fcn8s(width=width, norm=True),
    }[name]()


class Prediction(nn.Module):
    """From an image of bytes, [1, 3, H, W], to the class map, [1, H, W]: what is timed."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, image):
        return self.network((image.float() - 128.0) / 128.0).argmax(1)
