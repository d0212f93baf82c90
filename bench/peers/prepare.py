"""Writes the models that the inference runtimes load: float ONNX, and int8 ONNX in QDQ form with random calibration.

    prepare.py NETWORK HxW
"""

import sys

import numpy as np
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from models import MODELS, paths
from networks import Prediction, build

class RandomImages(CalibrationDataReader):
    def __init__(self, height, width, count=4):
        generator = np.random.default_rng(0)
        shape = (count, 1, 3, height, width)
        self.images = iter(generator.integers(0, 256, shape, dtype=np.uint8))

    def get_next(self):
        image = next(self.images, None)
        return None if image is None else {"image": image}


def prepare(network, size):
    height, width = map(int, size.split("x"))
    float_path, int8_path = paths(network, size)
    if int8_path.exists():
        return
    MODELS.mkdir(exist_ok=True)
    model = Prediction(build(network)).eval()
    image = torch.zeros(1, 3, height, width, dtype=torch.uint8)
    torch.onnx.export(model, (image,), str(float_path), input_names=["image"], output_names=["classes"],
                      opset_version=17, dynamo=False)
    clean = float_path.with_suffix(".clean.onnx")
    quant_pre_process(str(float_path), str(clean))
    quantize_static(str(clean), str(int8_path), RandomImages(height, width), quant_format=QuantFormat.QDQ,
                    activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, per_channel=True)
    clean.unlink()


if __name__ == "__main__":
    prepare(sys.argv[1], sys.argv[2])
