"""The float networks that are quantised after training, with torchvision's names for their weights.

Every network maps normalised images [N, 3, H, W] to scores [N, classes, H, W]. Sizes are plain integers, so that an
exported graph of a fixed size has no shape arithmetic in it.
"""

import torch
from torch import nn
from torch.nn import functional as F
from torchvision.models.segmentation import lraspp_mobilenet_v3_large


def resize(x, size):
    return F.interpolate(x, size=size, mode="bilinear", align_corners=False)


def size_of(x):
    return int(x.shape[2]), int(x.shape[3])


def norm_relu(channels):
    return nn.BatchNorm2d(channels), nn.ReLU(inplace=True)


class Fcn8s(nn.Module):
    """FCN-8s on torchvision's vgg16_bn: 7x7 fc6, skips from pool3 and pool4. Pools round up, as Caffe's did."""

    STAGES = (2, 2, 3, 3, 3)

    def __init__(self, classes, width):
        super().__init__()
        c_in, layers, self.taps = 3, [], []
        for stage, count in enumerate(self.STAGES):
            channels = int(min(64 << stage, 512) * width)
            for _ in range(count):
                layers += [nn.Conv2d(c_in, channels, 3, padding=1), *norm_relu(channels)]
                c_in = channels
            layers.append(nn.MaxPool2d(2, ceil_mode=True))
            self.taps.append(len(layers))
        self.features = nn.Sequential(*layers)
        hidden = int(4096 * width)
        self.fc6 = nn.Conv2d(c_in, hidden, 7, padding=3)
        self.fc7 = nn.Conv2d(hidden, hidden, 1)
        self.dropout = nn.Dropout(0.5)
        self.score_fr = nn.Conv2d(hidden, classes, 1)
        self.score_pool3 = nn.Conv2d(int(256 * width), classes, 1)
        self.score_pool4 = nn.Conv2d(int(512 * width), classes, 1)

    def forward(self, x):
        size = size_of(x)
        pool3 = self.features[: self.taps[2]](x)
        pool4 = self.features[self.taps[2] : self.taps[3]](pool3)
        x = self.features[self.taps[3] :](pool4)
        x = self.dropout(F.relu(self.fc6(x)))
        x = self.score_fr(self.dropout(F.relu(self.fc7(x))))
        x = resize(x, size_of(pool4)) + self.score_pool4(pool4)
        x = resize(x, size_of(pool3)) + self.score_pool3(pool3)
        return resize(x, size)


class Bottleneck(nn.Module):
    """torchvision's: the stride is that of the 3x3 convolution."""

    def __init__(self, c_in, channels, stride, dilation, downsample):
        super().__init__()
        c_out = 4 * channels
        self.conv1, self.bn1 = nn.Conv2d(c_in, channels, 1, bias=False), nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3, self.bn3 = nn.Conv2d(channels, c_out, 1, bias=False), nn.BatchNorm2d(c_out)
        self.downsample = None
        if downsample:
            self.downsample = nn.Sequential(nn.Conv2d(c_in, c_out, 1, stride, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x):
        skip = x if self.downsample is None else self.downsample(x)
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return F.relu(self.bn3(self.conv3(x)) + skip)


class ResNet50(nn.Module):
    """The backbone at output stride 8: the last two stages dilate instead of striding."""

    # Blocks, channels, stride, and the dilation of the first block and of those behind it.
    STAGES = ((3, 64, 1, (1, 1)), (4, 128, 2, (1, 1)), (6, 256, 1, (1, 2)), (3, 512, 1, (2, 4)))

    def __init__(self, width):
        super().__init__()
        c_in = int(64 * width)
        self.conv1, self.bn1 = nn.Conv2d(3, c_in, 7, 2, 3, bias=False), nn.BatchNorm2d(c_in)
        for number, (count, channels, stride, dilations) in enumerate(self.STAGES, 1):
            channels, blocks = int(channels * width), []
            for index in range(count):
                blocks.append(
                    Bottleneck(c_in, channels, stride if index == 0 else 1, dilations[index > 0], downsample=index == 0)
                )
                c_in = 4 * channels
            setattr(self, f"layer{number}", nn.Sequential(*blocks))

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.bn1(self.conv1(x))), 3, 2, 1)
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))


class AsppPooling(nn.Sequential):
    def __init__(self, c_in, c_out):
        super().__init__(nn.AdaptiveAvgPool2d(1), nn.Conv2d(c_in, c_out, 1, bias=False), *norm_relu(c_out))

    def forward(self, x):
        return resize(super().forward(x), size_of(x))


class Aspp(nn.Module):
    def __init__(self, c_in, c_out, rates=(12, 24, 36)):
        super().__init__()
        branches = [nn.Sequential(nn.Conv2d(c_in, c_out, 1, bias=False), *norm_relu(c_out))]
        for rate in rates:
            conv = nn.Conv2d(c_in, c_out, 3, padding=rate, dilation=rate, bias=False)
            branches.append(nn.Sequential(conv, *norm_relu(c_out)))
        self.convs = nn.ModuleList([*branches, AsppPooling(c_in, c_out)])
        fused = nn.Conv2d(len(self.convs) * c_out, c_out, 1, bias=False)
        self.project = nn.Sequential(fused, *norm_relu(c_out), nn.Dropout(0.5))

    def forward(self, x):
        return self.project(torch.cat([branch(x) for branch in self.convs], 1))


class DeepLabV3(nn.Module):
    """torchvision's deeplabv3_resnet50 without the auxiliary head; its names and, at width 1, its shapes."""

    def __init__(self, classes, width):
        super().__init__()
        channels = int(256 * width)
        self.backbone = ResNet50(width)
        self.classifier = nn.Sequential(
            Aspp(int(2048 * width), channels),
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            *norm_relu(channels),
            nn.Conv2d(channels, classes, 1),
        )

    def forward(self, x):
        return resize(self.classifier(self.backbone(x)), size_of(x))


class UNet(nn.Module):
    """Four levels, 8 times apart from top to bottom, because 360 lines halve exactly three times."""

    LEVELS = 4

    def __init__(self, classes, width):
        super().__init__()
        widths = [int(64 * width) << level for level in range(self.LEVELS)]
        self.down = nn.ModuleList(self.convs(c_in, c_out) for c_in, c_out in zip([3, *widths], widths))
        pairs = list(zip(widths[:0:-1], widths[-2::-1]))
        self.up = nn.ModuleList(nn.ConvTranspose2d(c_in, c_out, 2, 2) for c_in, c_out in pairs)
        self.merge = nn.ModuleList(self.convs(2 * c_out, c_out) for _, c_out in pairs)
        self.classify = nn.Conv2d(widths[0], classes, 1)

    @staticmethod
    def convs(c_in, c_out):
        layers = []
        for channels in (c_in, c_out):
            layers += [nn.Conv2d(channels, c_out, 3, padding=1, bias=False), *norm_relu(c_out)]
        return nn.Sequential(*layers)

    def forward(self, x):
        skips = []
        for level, convs in enumerate(self.down):
            x = convs(F.max_pool2d(x, 2) if level else x)
            skips.append(x)
        skips.pop()
        for up, merge in zip(self.up, self.merge):
            x = merge(torch.cat([skips.pop(), up(x)], 1))
        return self.classify(x)


class Lraspp(nn.Module):
    """torchvision's lraspp_mobilenet_v3_large itself, at its own width and with its initial weights."""

    def __init__(self, classes, _width):
        super().__init__()
        self.network = lraspp_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=classes)

    def forward(self, x):
        return self.network(x)["out"]


class FcnTiny(nn.Module):
    """intseg's `fcn-tiny` with batch normalisation folded: at width 3, models/camvid-small.iseg in float."""

    def __init__(self, classes, width):
        super().__init__()
        c1, c2, c3 = (int(c * width) for c in (16, 32, 48))
        self.conv1, self.conv2 = nn.Conv2d(3, c1, 3, 2, 1), nn.Conv2d(c1, c2, 3, 2, 1)
        self.conv3 = nn.Conv2d(c2, c3, 3, padding=1)
        self.conv4, self.conv5 = (nn.Conv2d(c3, c3, 3, padding=d, dilation=d) for d in (2, 4))
        self.score, self.score_half = nn.Conv2d(c3, classes, 1), nn.Conv2d(c1, classes, 1)

    def start(self, weights, mean, std):
        """Takes the weights of `intseg export --format safetensors`, whose image is `(v - 128) / 128`."""
        weights = {name.replace(".bn.", "."): value for name, value in weights.items()}
        scale, offset = (255 * torch.tensor(std) / 128, (255 * torch.tensor(mean) - 128) / 128)
        first = weights["conv1.weight"]
        weights["conv1.bias"] = weights["conv1.bias"] + (first * offset.view(1, 3, 1, 1)).sum((1, 2, 3))
        weights["conv1.weight"] = first * scale.view(1, 3, 1, 1)
        self.load_state_dict(weights)

    def forward(self, x):
        half = F.relu(self.conv1(x))
        y = F.relu(self.conv2(half))
        for conv in (self.conv3, self.conv4, self.conv5):
            y = F.relu(conv(y))
        skip = self.score_half(half)
        return resize(resize(self.score(y), size_of(skip)) + skip, size_of(x))


NETWORKS = {"fcn8s": Fcn8s, "deeplabv3": DeepLabV3, "unet": UNet, "fcn_tiny": FcnTiny, "lraspp": Lraspp}


def build(name, classes=11, width=0.25):
    """A network with He's initial weights."""
    network = NETWORKS[name](classes, width)
    if isinstance(network, Lraspp):
        return network
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)
    return network
