"""Quantises trained networks with three tools, from the same images, and tables what each costs in accuracy.

    compare.py --data DIR --models DIR --work DIR [--intseg PATH] [--network NAME ...]

--models holds NETWORK.onnx as train.py writes it. The first 32 training images calibrate, all validation images score.
All tools see the same pixels: intseg, which reads files, gets PNG files of what Pillow decodes. JPEG decoders round chroma
differently, and that alone can change more classes than quantisation does.
What ONNX Runtime and OpenVINO answered is kept in --work, and read from there while it is newer than the network.
mIoU is over the classes that occur, agreement the share of all pixels that have the float network's class. ONNX Runtime
and OpenVINO are tried with several settings and judged by their best on the validation images, intseg by its only one.
The first table has a row a network, the second a row a setting, the third what intseg has more than each setting of the
others: the difference, and the middle 95 % of the differences over sets of images drawn from the same ones with
replacement (a paired bootstrap). An interval on both sides of 0 is what chance alone makes.
"""

import argparse
import os
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import nncf
import numpy as np
import onnxruntime
import openvino
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from PIL import Image

import camvid
from networks import NETWORKS

TOOLS = ("ONNX Runtime", "OpenVINO", "intseg")
ORT_SETTINGS = {
    "MinMax, QUInt8": (CalibrationMethod.MinMax, QuantType.QUInt8),
    "MinMax, QInt8": (CalibrationMethod.MinMax, QuantType.QInt8),
    "Entropy, QUInt8": (CalibrationMethod.Entropy, QuantType.QUInt8),
    "Percentile, QUInt8": (CalibrationMethod.Percentile, QuantType.QUInt8),
}
# The biases are corrected from the statistics of one run through the network, or layer after layer.
OPENVINO_SETTINGS = {
    "default preset": {},
    "mixed preset": {"preset": nncf.QuantizationPreset.MIXED},
    "default preset, accurate bias correction": {"fast_bias_correction": False},
}


@dataclass
class Score:
    """What a quantised network reached."""

    network: str
    tool: str
    setting: str
    matrices: np.ndarray
    """Each image's confusion matrix, [N, classes, classes]."""
    agreements: np.ndarray
    """Each image's share of pixels with the float network's class, in per cent."""
    seconds: float

    @property
    def miou(self):
        return camvid.mean_iou(self.matrices.sum(0))

    @property
    def agreement(self):
        return float(self.agreements.mean())


class Images:
    """The images of a comparison, and folders of their pixels for a tool that reads files."""

    def __init__(self, data, work, calibration):
        self.data, self.work = data, work
        self.calibration, self.val = camvid.names(data, "train")[:calibration], camvid.names(data, "val")

    def read(self, name):
        return camvid.normalised(camvid.read_image(camvid.image_path(self.data, name)))

    def truths(self):
        return [camvid.read_truth(self.data, name) for name in self.val]

    def folder(self, split):
        folder = self.work / split
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in getattr(self, split):
            pixels = camvid.read_image(camvid.image_path(self.data, name))
            Image.fromarray(pixels).save(folder / f"{name}.png", compress_level=1)
        return folder


class Reader(CalibrationDataReader):
    """Calibration images for ONNX Runtime, which asks for a range of them at a time."""

    STRIDE = 4

    def __init__(self, images):
        self.images, self.left = images, iter(images.calibration)

    def __len__(self):
        return len(self.images.calibration)

    def set_range(self, start_index, end_index):
        self.left = iter(self.images.calibration[start_index:end_index])

    def get_next(self):
        name = next(self.left, None)
        return None if name is None else {"image": self.images.read(name)}


def class_maps(scores, images):
    """Class maps [H, W] of the validation images, from a function of one normalised image."""
    return [scores(images.read(name)).argmax(1)[0].astype(np.uint8) for name in images.val]


def ort_scores(model, threads):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    return lambda image: session.run(None, {"image": image})[0]


def openvino_scores(model, threads):
    """Float32 for what is not quantised: left alone, OpenVINO takes bfloat16 where the processor has it."""
    settings = {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": threads}
    compiled = openvino.compile_model(model, "CPU", settings)
    return lambda image: compiled(image)[0]


def by_ort(model, images, threads):
    clean = images.work / f"{model.stem}.clean.onnx"
    quant_pre_process(str(model), str(clean))
    for setting, (method, activations) in ORT_SETTINGS.items():
        started = time.perf_counter()
        quantised = images.work / f"{model.stem}.ort-{'-'.join(setting.lower().split(', '))}.onnx"
        quantize_static(
            str(clean),
            str(quantised),
            Reader(images),
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=activations,
            weight_type=QuantType.QInt8,
            calibrate_method=method,
            # The same ranges as from all images at once, in an eighth of the memory.
            extra_options={"CalibStridedMinMax": Reader.STRIDE},
        )
        seconds = time.perf_counter() - started
        yield setting, class_maps(ort_scores(quantised, threads), images), seconds


def by_openvino(model, images, threads):
    for setting, arguments in OPENVINO_SETTINGS.items():
        started = time.perf_counter()
        dataset = nncf.Dataset(images.calibration, images.read)
        quantised = nncf.quantize(
            openvino.convert_model(str(model)), dataset, subset_size=len(images.calibration), **arguments
        )
        seconds = time.perf_counter() - started
        name = setting.replace(",", "").replace(" ", "-")
        openvino.save_model(quantised, str(images.work / f"{model.stem}.openvino-{name}.xml"))
        yield setting, class_maps(openvino_scores(quantised, threads), images), seconds


def kept(file, model, answers):
    """Settings, class maps and seconds from a file that is newer than the model, or computed and written to it."""
    if not file.exists() or file.stat().st_mtime < model.stat().st_mtime:
        settings, maps, seconds = zip(*answers, strict=True)
        np.savez_compressed(file, settings=settings, maps=np.stack([np.stack(some) for some in maps]), seconds=seconds)
    with np.load(file) as found:
        yield from zip(found["settings"].tolist(), found["maps"], found["seconds"].tolist(), strict=True)


def by_intseg(command, options, model, images):
    """Masks of the binary; nothing, and a message, where it is missing or cannot import."""
    binary = shutil.which(command) if command else None
    if not binary:
        print(f"intseg skipped: no binary at {command}" if command else "intseg skipped: no --intseg", file=sys.stderr)
        return
    quantised, masks = images.work / f"{model.stem}.iseg", images.work / f"{model.stem}.masks"
    shutil.rmtree(masks, ignore_errors=True)
    calibration, val = images.folder("calibration"), images.folder("val")
    try:
        started = time.perf_counter()
        subprocess.run(
            [binary, "import", "--weights", model, "--calibrate", calibration, "-o", quantised, *options], check=True
        )
        seconds = time.perf_counter() - started
        subprocess.run(
            [binary, "predict", "--model", quantised, "--input", val, "--output", masks],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    except subprocess.CalledProcessError as error:
        print(f"intseg skipped: {shlex.join(map(str, error.cmd))} ended with {error.returncode}", file=sys.stderr)
        return
    yield "", [camvid.read_classes(masks / f"{name}.png") for name in images.val], seconds


def confusions(maps, truths):
    return np.stack([camvid.confusion(truth, guess) for truth, guess in zip(truths, maps, strict=True)])


def bootstrapped(ours, theirs, samples=10_000):
    """What intseg has more in mIoU and in agreement, and the middle 95 % of both over drawn sets of images."""
    drawn = np.random.default_rng(0).integers(0, len(ours.matrices), (samples, len(ours.matrices)))
    # How often each image is drawn: a set's confusion matrix is a product.
    counts = np.stack([np.bincount(images, minlength=len(ours.matrices)) for images in drawn])
    mious = [
        np.array([camvid.mean_iou(matrix) for matrix in np.tensordot(counts, score.matrices, 1)])
        for score in (ours, theirs)
    ]
    differences = {
        "mIoU": (ours.miou - theirs.miou, mious[0] - mious[1]),
        "agreement": (ours.agreement - theirs.agreement,
                      (counts * (ours.agreements - theirs.agreements)).mean(1)),
    }  # fmt: skip
    return {name: (found, *np.percentile(samples, [2.5, 97.5])) for name, (found, samples) in differences.items()}


def compared(model, images, options):
    """The float network's mIoU and the scores of everything made from it."""
    truths = images.truths()
    reference = class_maps(ort_scores(model, options.threads), images)

    def file(tool):
        return images.work / f"{model.stem}.{tool}-{options.calibration}.npz"

    tools = {
        "ONNX Runtime": kept(file("ort"), model, by_ort(model, images, options.threads)),
        "OpenVINO": kept(file("openvino"), model, by_openvino(model, images, options.threads)),
        "intseg": by_intseg(options.intseg, shlex.split(options.import_options), model, images),
    }
    scores = []
    for tool in options.tool or TOOLS:
        for setting, maps, seconds in tools[tool]:
            agreements = 100 * np.array([np.mean(a == b) for a, b in zip(maps, reference, strict=True)])
            score = Score(model.stem, tool, setting, confusions(maps, truths), agreements, seconds)
            scores.append(score)
            print(f"{model.stem}, {tool}, {setting}: mIoU {score.miou:.2f}, agreement {score.agreement:.2f} %",
                  file=sys.stderr, flush=True)  # fmt: skip
    return camvid.mean_iou(confusions(reference, truths).sum(0)), scores


def row(*cells):
    return f"| {' | '.join(cells)} |"


def best(scores, network, tool):
    found = [score for score in scores if (score.network, score.tool) == (network, tool)]
    return max(found, key=lambda score: score.miou, default=None)


def print_tables(floats, scores):
    print(row("network", "float mIoU", *(f"{tool}: mIoU | difference | agreement | seconds" for tool in TOOLS)))
    print(f"|---|{'---:|' * (1 + 4 * len(TOOLS))}")
    for network, miou in floats.items():
        cells = []
        for tool in TOOLS:
            score = best(scores, network, tool)
            cells += [f"{score.miou:.2f}", f"{score.miou - miou:+.2f}", f"{score.agreement:.2f} %",
                      f"{score.seconds:.0f}"] if score else ["–"] * 4
        print(row(network, f"{miou:.2f}", *cells))
    print()
    print(row("network", "tool", "setting", "mIoU", "difference", "agreement", "seconds to quantise"))
    print("|---|---|---|---:|---:|---:|---:|")
    for score in scores:
        kept = " (in the table above)" * (score is best(scores, score.network, score.tool) and score.setting != "")
        print(row(score.network, score.tool, score.setting + kept, f"{score.miou:.2f}",
                  f"{score.miou - floats[score.network]:+.2f}", f"{score.agreement:.2f} %", f"{score.seconds:.1f}"))
    print()
    print(row("network", "intseg less", "mIoU", "95 %", "agreement", "95 %"))
    print("|---|---|---:|---:|---:|---:|")
    for score in scores:
        ours = best(scores, score.network, "intseg")
        if score.tool == "intseg" or ours is None:
            continue
        cells = [f"{value:+.2f} | {low:+.2f} to {high:+.2f}" for value, low, high in bootstrapped(ours, score).values()]
        print(row(score.network, f"{score.tool}, {score.setting}", *cells))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=Path)
    parser.add_argument("--models", required=True, type=Path, help="folder of NETWORK.onnx")
    parser.add_argument("--work", required=True, type=Path, help="folder for the quantised models and masks")
    parser.add_argument("--intseg", help="the binary of intseg; its columns stay empty without it")
    parser.add_argument("--import-options", default="", help="further options of `intseg import`, in one string")
    parser.add_argument("--network", action="append", choices=NETWORKS, help="one alone (may be repeated)")
    parser.add_argument("--tool", action="append", choices=TOOLS, help="one alone (may be repeated)")
    parser.add_argument("--calibration", type=int, default=32, help="training images, a multiple of 4")
    parser.add_argument("--threads", type=int, default=os.cpu_count(), help="of inference")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    images = Images(options.data, options.work, options.calibration)
    floats, scores = {}, []
    for network in options.network or NETWORKS:
        floats[network], found = compared(options.models / f"{network}.onnx", images, options)
        scores += found
    print_tables(floats, scores)


if __name__ == "__main__":
    main()
