"""Where the prepared models lie."""

from pathlib import Path

MODELS = Path(__file__).parent / "models"


def paths(network, size):
    """The float and the int8 model."""
    stem = f"{network}-{size}"
    return MODELS / f"{stem}-float.onnx", MODELS / f"{stem}-int8.onnx"


def nncf_path(network, size):
    """The model that NNCF quantised for OpenVINO."""
    return MODELS / f"{network}-{size}-nncf.xml"


def litert_path(network, size):
    """The LiteRT model."""
    return MODELS / f"{network}-{size}.tflite"
