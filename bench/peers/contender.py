"""One contender in a process of its own: loads, then runs twice for every line on its input and times the second.

    contender.py NAME NETWORK HxW THREADS [BATCH] [WIDTH]

Answers each line with a JSON object: seconds, and the peak of the resident memory in MB. Inference contenders are
`openvino`, `openvino-nncf`, `onnxruntime`, `torch`, `litert`; training contenders are `eager`, `channels-last`, `compile`, `bf16`.
"""

import json
import os
import sys
import time

import numpy as np


def reset_peak():
    try:
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
    except OSError:
        pass


def peak_memory():
    with open("/proc/self/status") as file:
        for line in file:
            if line.startswith("VmHWM"):
                return int(line.split()[1]) / 1000
    return float("nan")


def image(size):
    return np.random.default_rng(1).integers(0, 256, (1, 3, *size), dtype=np.uint8)


def openvino(network, size, threads, path=None):
    import openvino as ov
    from models import paths

    core = ov.Core()
    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1}
    path = path or paths(network, "x".join(map(str, size)))[1]
    model = core.compile_model(str(path), "CPU", options)
    request, x = model.create_infer_request(), image(size)
    return lambda: request.infer([x])


def openvino_nncf(network, size, threads):
    from models import nncf_path

    return openvino(network, size, threads, nncf_path(network, "x".join(map(str, size))))


def onnxruntime(network, size, threads):
    import onnxruntime as ort
    from models import paths

    options = ort.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    path = str(paths(network, "x".join(map(str, size)))[1])
    session, x = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"]), image(size)
    return lambda: session.run(None, {"image": x})


def torch_int8(network, size, threads):
    """Post-training int8 of the exported graph, lowered by inductor: PyTorch's way for x86."""
    import torch
    import torchao.quantization.pt2e.quantizer.x86_inductor_quantizer as x86
    import torch._inductor.config as inductor
    from torch._dynamo.utils import counters
    from torchao.quantization.pt2e import move_exported_model_to_eval
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

    from networks import build, without_ceil_mode

    torch.set_num_threads(threads)
    inductor.freezing = True
    # PyTorch 2.15 loses the flag when it lowers an int8 pool, and odd sizes fail.
    model = without_ceil_mode(build(network)).eval()
    x = (torch.from_numpy(image(size)).float() - 128.0) / 128.0
    quantizer = x86.X86InductorQuantizer()
    quantizer.set_global(x86.get_default_x86_inductor_quantization_config())
    with torch.no_grad():
        graph = torch.export.export(model, (x,)).module()
        graph = prepare_pt2e(graph, quantizer)
        graph(x)
        graph = convert_pt2e(graph)
        move_exported_model_to_eval(graph)
        bytes_in = torch.from_numpy(image(size))
        predict = torch.compile(lambda b: graph((b.float() - 128.0) / 128.0).argmax(1))
        predict(bytes_in)
    lowered = counters["inductor"]["qconv_weight_prepack_matcher_count"]
    print(f"{lowered} convolutions in int8", file=sys.stderr)
    if not lowered:
        raise RuntimeError("inductor left every convolution in float")

    def run():
        with torch.no_grad():
            predict(bytes_in)

    return run


def litert(network, size, threads):
    from ai_edge_litert.interpreter import Interpreter
    from models import litert_path

    path = str(litert_path(network, "x".join(map(str, size))))
    interpreter = Interpreter(model_path=path, num_threads=threads)
    interpreter.allocate_tensors()
    into, out = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    x = np.ascontiguousarray(image(size).transpose(0, 2, 3, 1))

    def run():
        interpreter.set_tensor(into, x)
        interpreter.invoke()
        return interpreter.get_tensor(out)

    return run


def training(name, network, size, threads, batch, width):
    import torch
    from torch.nn import functional as F

    from networks import build

    torch.set_num_threads(threads)
    model = build(network, width) if width != 1.0 else build(network)
    model.train()
    x = torch.randn(batch, 3, *size)
    labels = torch.randint(0, 21, (batch, *size))
    if name != "eager":
        model, x = model.to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last)
    forward = torch.compile(model) if name == "compile" else model
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)

    def step():
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=name == "bf16"):
            loss = F.cross_entropy(forward(x).float(), labels)
        loss.backward()
        optimizer.step()

    return step


def main():
    name, network, size, threads, *rest = sys.argv[1:]
    size, threads = tuple(map(int, size.split("x"))), int(threads)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    if rest:
        run = training(name, network, size, threads, int(rest[0]), float(rest[1]))
    else:
        load = {"openvino": openvino, "openvino-nncf": openvino_nncf, "onnxruntime": onnxruntime, "torch": torch_int8,
                "litert": litert}[name]
        run = load(network, size, threads)
    run()
    reset_peak()
    print(json.dumps({"ready": True}), flush=True)
    for _ in sys.stdin:
        run()
        start = time.perf_counter()
        run()
        seconds = time.perf_counter() - start
        print(json.dumps({"seconds": seconds, "memory": peak_memory()}), flush=True)


if __name__ == "__main__":
    main()
