"""Writes the int8 LiteRT model of a network, built anew in Keras with channels last: image of bytes in, classes out.

    prepare_litert.py NETWORK HxW
"""

import sys

import numpy as np
import tensorflow as tf
from tensorflow.keras import layers

from models import MODELS, litert_path


def conv(x, channels, kernel, stride=1, rate=1, norm=True, relu=True):
    """Convolution with PyTorch's padding, batch normalisation (or a bias) and ReLU."""
    pad = rate * (kernel // 2)
    if pad:
        x = layers.ZeroPadding2D(pad)(x)
    x = layers.Conv2D(channels, kernel, stride, dilation_rate=rate, use_bias=not norm)(x)
    x = layers.BatchNormalization()(x) if norm else x
    return layers.ReLU()(x) if relu else x


def resize(x, size):
    return layers.Resizing(*size, interpolation="bilinear")(x)


def deeplab(x, classes):
    size = x.shape[1:3]
    x = conv(x, 64, 7, stride=2)
    x = layers.MaxPool2D(3, 2)(layers.ZeroPadding2D(1)(x))
    # Blocks, channels, stride, and the rate of the first block and of those behind it.
    for count, width, stride, rates in ((3, 64, 1, (1, 1)), (4, 128, 2, (1, 1)), (6, 256, 1, (1, 2)), (3, 512, 1, (2, 4))):
        for block in range(count):
            step, rate = (stride, rates[0]) if block == 0 else (1, rates[1])
            skip = conv(x, 4 * width, 1, stride=step, relu=False) if block == 0 else x
            x = conv(conv(x, width, 1), width, 3, stride=step, rate=rate)
            x = layers.ReLU()(layers.Add()([conv(x, 4 * width, 1, relu=False), skip]))
    small = x.shape[1:3]
    pooled = conv(layers.GlobalAveragePooling2D(keepdims=True)(x), 256, 1)
    branches = [conv(x, 256, 1), *(conv(x, 256, 3, rate=rate) for rate in (12, 24, 36)), resize(pooled, small)]
    x = conv(conv(layers.Concatenate()(branches), 256, 1), 256, 3)
    return resize(layers.Conv2D(classes, 1)(x), size)


def fcn8s(x, classes):
    size, features = x.shape[1:3], []
    for stage, count in enumerate((2, 2, 3, 3, 3)):
        for _ in range(count):
            x = conv(x, min(64 << stage, 512), 3, norm=False)
        # "same" pads an odd size at its end, as rounding up does.
        x = layers.MaxPool2D(2, 2, padding="same")(x)
        features.append(x)
    x = conv(conv(x, 4096, 7, norm=False), 4096, 1, norm=False)
    x = layers.Conv2D(classes, 1)(x)
    for skip in (features[3], features[2]):
        x = layers.Add()([resize(x, skip.shape[1:3]), layers.Conv2D(classes, 1)(skip)])
    return resize(x, size)


def prepare(network, size):
    height, width = map(int, size.split("x"))
    image = tf.keras.Input((height, width, 3), batch_size=1)
    scores = {"deeplabv3-resnet50": deeplab, "fcn8s-vgg16": fcn8s}[network](image, 21)
    classes = layers.Lambda(lambda scores: tf.argmax(scores, -1, output_type=tf.int32))(scores)
    model = tf.keras.Model(image, classes)
    generator = np.random.default_rng(0)

    def calibration():
        for _ in range(4):
            yield [generator.uniform(-1, 1, (1, height, width, 3)).astype(np.float32)]

    converter = tf.lite.TFLiteConverter.from_keras_model(model)
    converter.optimizations = [tf.lite.Optimize.DEFAULT]
    converter.representative_dataset = calibration
    converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS_INT8]
    converter.inference_input_type = tf.uint8
    MODELS.mkdir(exist_ok=True)
    litert_path(network, size).write_bytes(converter.convert())


if __name__ == "__main__":
    prepare(sys.argv[1], sys.argv[2])
