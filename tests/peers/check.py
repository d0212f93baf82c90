"""Checks an exported ONNX model as ONNX's own library does, and that it has ONNX's own operators alone."""
import sys

import onnx

model = onnx.load(sys.argv[1])
onnx.checker.check_model(model, full_check=True)
domains = {node.domain for node in model.graph.node} | {opset.domain for opset in model.opset_import}
assert domains == {""}, domains
(image,), (classes,) = model.graph.input, model.graph.output
assert (image.name, classes.name) == ("image", "class_map")
