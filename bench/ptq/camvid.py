"""Data sets in the layout of PASCAL VOC: images as bytes, labels as class numbers with 255 for the ignored."""

from pathlib import Path

import numpy as np
from PIL import Image

CLASSES = 11
IGNORED = 255
SIZE = (360, 480)
# ImageNet's, of bytes divided by 255.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def names(data, split):
    return (Path(data) / "ImageSets/Segmentation" / f"{split}.txt").read_text().split()


def image_path(data, name):
    return Path(data) / "JPEGImages" / f"{name}.jpg"


def read_image(path):
    """Bytes [H, W, 3]."""
    return np.asarray(Image.open(path).convert("RGB"))


def read_classes(path):
    """Class numbers [H, W]: the palette's indices, not its colours."""
    return np.asarray(Image.open(path))


def read_truth(data, name):
    return read_classes(Path(data) / "SegmentationClass" / f"{name}.png")


def normalised(image):
    """The network's input, [1, 3, H, W], of an image's bytes [H, W, 3]."""
    x = (image.astype(np.float32) / 255 - np.float32(MEAN)) / np.float32(STD)
    return np.ascontiguousarray(x.transpose(2, 0, 1)[None])


def confusion(truth, guess):
    """The confusion matrix, truth in rows, over the pixels that are not ignored."""
    valid = truth < CLASSES
    index = truth[valid].astype(np.int64) * CLASSES + guess[valid]
    return np.bincount(index, minlength=CLASSES**2).reshape(CLASSES, CLASSES)


def mean_iou(matrix):
    """Per cent, over the classes that occur."""
    right = np.diag(matrix)
    union = matrix.sum(0) + matrix.sum(1) - right
    return float(100 * (right[union > 0] / union[union > 0]).mean())
