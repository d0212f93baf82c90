"""Runs an ONNX model over images: each [H, W, 3] on stdin, its class map and microseconds on stdout."""
import sys
import time

try:
    import numpy
    import onnxruntime
except ImportError as error:
    print(error, file=sys.stderr)
    sys.exit(3)

options = onnxruntime.SessionOptions()
options.log_severity_level = 3
# x86 processors without VNNI saturate sums of two products unless they are told not to.
try:
    with open("/proc/cpuinfo") as processor:
        has_vnni = "vnni" in processor.read()
except OSError:
    has_vnni = False
if not has_vnni:
    options.add_session_config_entry("session.x64quantprecision", "1")
session = onnxruntime.InferenceSession(sys.argv[1], options, providers=["CPUExecutionProvider"])
image = session.get_inputs()[0]
answers = sys.stdout.buffer
answers.write((onnxruntime.__version__ + "\n").encode())
answers.flush()
size = int(numpy.prod(image.shape))
while len(pixels := sys.stdin.buffer.read(size)) == size:
    values = numpy.frombuffer(pixels, numpy.uint8).reshape(image.shape)
    start = time.perf_counter()
    classes = session.run(None, {image.name: values})[0]
    microseconds = int((time.perf_counter() - start) * 1e6)
    answers.write(classes.astype(numpy.uint8).tobytes() + microseconds.to_bytes(8, "little"))
    answers.flush()
