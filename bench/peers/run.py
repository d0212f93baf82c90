"""Runs intseg and its peers in turn, A B A B, and prints one table a cell.

    run.py [--network NAME] [--size HxW] [--threads N] [--train] [--turns N] [--only NAME,NAME] [--intseg PATH]

Every contender is a process that has loaded and run once before the first turn; in a turn each runs once, one after the
other, with a short rest between. intseg is started anew for each turn and times its second run. Times are those of a
whole prediction, from an image of bytes to a class map, or of a whole training step. Without --network and --size the
cells of docs/benchmarks.md are run.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from models import MODELS, litert_path, paths

HERE = Path(__file__).parent
PREDICTION = {"openvino": "OpenVINO int8", "onnxruntime": "ONNX Runtime int8", "torch": "PyTorch int8 (pt2e)",
              "litert": "LiteRT int8"}
TRAINING = {"channels-last": "PyTorch channels_last", "eager": "PyTorch eager", "compile": "torch.compile",
            "bf16": "PyTorch bf16"}
CELLS = [(network, size, threads) for network in ("deeplabv3-resnet50", "fcn8s-vgg16")
         for size in ("513x513", "320x320") for threads in (2, 1)]
# Network, size, batch, width.
TRAINING_CELLS = [("deeplabv3-resnet50", "321x321", 4, 1.0), ("fcn8s-vgg16", "320x320", 4, 1.0),
                  ("fcn8s-vgg16-bn", "120x160", 8, 0.25)]
# Billions of multiply-accumulates on taps that are not padding.
USEFUL = {("deeplabv3-resnet50", "513x513"): 140.7, ("deeplabv3-resnet50", "320x320"): 48.4,
          ("fcn8s-vgg16", "513x513"): 110.2, ("fcn8s-vgg16", "320x320"): 39.5}


class Peer:
    """A peer in a process of its own."""

    def __init__(self, name, cell, threads):
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "KMP_BLOCKTIME": "1"}
        command = [sys.executable, str(HERE / "contender.py"), name, *map(str, cell)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                                        env=environment, stderr=subprocess.DEVNULL)
        if not self.answer():
            raise RuntimeError(f"{name} did not start: run {' '.join(command)} to see why")

    def answer(self):
        line = self.process.stdout.readline()
        while line and not line.startswith("{"):
            line = self.process.stdout.readline()
        return json.loads(line) if line else None

    def run(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        answer = self.answer()
        return answer["seconds"] * 1e3, answer["memory"]

    def close(self):
        self.process.kill()
        self.process.wait()


class Intseg:
    """intseg, started for each turn."""

    def __init__(self, command):
        self.command = command

    def run(self):
        answer = json.loads(subprocess.run(self.command, check=True, capture_output=True, text=True).stdout)
        return answer["median_ms"], answer["peak_rss_bytes"] / 1e6

    def close(self):
        pass


def contenders(options, cell, names, intseg):
    found = {"intseg": Intseg(intseg)}
    for name, title in names.items():
        if options.only and name not in options.only.split(","):
            continue
        try:
            found[title] = Peer(name, cell, options.threads)
        except RuntimeError as error:
            print(f"skipped: {error}", file=sys.stderr)
    return found


def measure(found, turns):
    times, memory = {name: [] for name in found}, {}
    try:
        for _ in range(turns):
            for name, contender in found.items():
                time.sleep(0.2)
                milliseconds, megabytes = contender.run()
                times[name].append(milliseconds)
                memory[name] = max(memory.get(name, 0), megabytes)
    finally:
        for contender in found.values():
            contender.close()
    return times, memory


def print_table(title, times, memory, useful=None, peak=None, images=None):
    medians = {name: statistics.median(values) for name, values in times.items()}
    fastest = min((value for name, value in medians.items() if name != "intseg"), default=float("nan"))
    head = ["", "median ms", "min ms", "to the fastest peer"]
    head += ["GMAC/s", "of the ceiling"] if useful else ["images/s"]
    print(f"\n**{title}**\n\n| {' | '.join([*head, 'peak MB'])} |\n|{'---|' * (len(head) + 1)}")
    for name, median in sorted(medians.items(), key=lambda item: item[1]):
        row = [name, f"{median:.1f}", f"{min(times[name]):.1f}", f"{median / fastest:.2f}"]
        if useful:
            rate = useful / median * 1e3
            row += [f"{rate:.0f}", f"{100 * rate / peak:.0f} %"]
        else:
            row.append(f"{images / median * 1e3:.2f}")
        print(f"| {' | '.join([*row, f'{memory[name]:.0f}'])} |", flush=True)


def predict(options, network, size):
    model = MODELS / f"{network}.iseg"
    if not paths(network, size)[1].exists():
        subprocess.run([sys.executable, str(HERE / "prepare.py"), network, size], check=True)
    if not litert_path(network, size).exists():
        subprocess.run([sys.executable, str(HERE / "prepare_litert.py"), network, size], check=True)
    MODELS.mkdir(exist_ok=True)
    if not model.exists():
        subprocess.run([options.intseg, "bench", "--arch", network, "--save", model], check=True)
    threads = str(options.threads)
    command = [options.intseg, "bench", "--model", model, "--size", size, "--threads", threads, "--runs", "1", "--json"]
    found = contenders(options, (network, size, threads), PREDICTION, command)
    answer = subprocess.run([options.intseg, "bench", "--peak", "--threads", threads, "--json"], check=True,
                            capture_output=True, text=True)
    peak = json.loads(answer.stdout)["int8_gmacs_per_s"]
    times, memory = measure(found, options.turns)
    title = f"{network}, {size}, {threads} thread{'s' * (options.threads > 1)}"
    print_table(title, times, memory, USEFUL.get((network, size)), peak, images=1)


def train(options, network, size, batch, width):
    command = [options.intseg, "bench", "--arch", network, "--size", size, "--batch", str(batch), "--width", str(width),
               "--threads", str(options.threads), "--train", "--runs", "2", "--json"]
    cell = (network, size, options.threads, batch, width)
    times, memory = measure(contenders(options, cell, TRAINING, command), options.turns)
    title = f"training {network}, width {width:g}, {batch} x {size}, {options.threads} threads"
    print_table(title, times, memory, images=batch)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network")
    parser.add_argument("--size")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--only", default="")
    parser.add_argument("--intseg", default=str(HERE.parents[1] / "target/release/intseg"))
    options = parser.parse_args()
    if options.train:
        for cell in TRAINING_CELLS:
            if options.network in (None, cell[0]):
                train(options, *cell)
        return
    cells = [cell for cell in CELLS if options.network in (None, cell[0]) and options.size in (None, cell[1])]
    if options.network and options.size:
        cells = [(options.network, options.size, options.threads)]
    for network, size, threads in cells:
        options.threads = threads
        predict(options, network, size)


if __name__ == "__main__":
    main()
