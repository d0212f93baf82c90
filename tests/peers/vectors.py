"""Prints the test cases of the onnx package's own backend tests for the operators that intseg has, a JSON object a line."""

import json
import warnings

import numpy as np
import onnx
from onnx.backend.test.case.node import collect_testcases

OPERATORS = {
    "Conv", "ConvInteger", "QLinearConv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "Resize",
    "QuantizeLinear", "DequantizeLinear",
}  # fmt: skip


def tensor(value):
    value = np.asarray(value)
    # Types that NumPy does not have of its own (float8, int4) are named and left to the reader to refuse.
    plain = value.dtype.kind in "biuf" and value.dtype.name.startswith(("int", "uint", "float"))
    data = value.astype(np.float64).ravel().tolist() if plain else []
    return {"type": value.dtype.name, "shape": list(value.shape), "data": data}


def attribute(a):
    value = onnx.helper.get_attribute_value(a)
    return value.decode() if isinstance(value, bytes) else value


warnings.filterwarnings("ignore")
for case in sorted(collect_testcases(None), key=lambda case: case.name):
    nodes = [] if case.model is None else case.model.graph.node
    if len(nodes) != 1 or nodes[0].op_type not in OPERATORS:
        continue
    node, graph = nodes[0], case.model.graph
    (inputs, outputs) = case.data_sets[0]
    by_name = dict(zip((i.name for i in graph.input), inputs))
    print(json.dumps({
        "name": case.name,
        "operator": node.op_type,
        "attributes": {a.name: attribute(a) for a in node.attribute},
        "inputs": [tensor(by_name[name]) if name in by_name else None for name in node.input],
        "outputs": [tensor(value) for value in outputs],
    }))  # fmt: skip
