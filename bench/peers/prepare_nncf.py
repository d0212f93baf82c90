"""Writes the int8 model that OpenVINO's own tool makes of the float ONNX file: prepare.py comes first.

    prepare_nncf.py NETWORK HxW
"""

import sys

import nncf
import numpy as np
import openvino as ov

from models import nncf_path, paths


def prepare(network, size):
    generator = np.random.default_rng(0)
    shape = (1, 3, *map(int, size.split("x")))
    images = [generator.integers(0, 256, shape, dtype=np.uint8) for _ in range(4)]
    model = ov.convert_model(str(paths(network, size)[0]))
    model = nncf.quantize(model, nncf.Dataset(images), subset_size=len(images))
    ov.save_model(model, str(nncf_path(network, size)))


if __name__ == "__main__":
    prepare(sys.argv[1], sys.argv[2])
