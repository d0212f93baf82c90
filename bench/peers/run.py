"""Runs intseg and its peers in turn, A B A B, and prints one table a cell.

    run.py [--network NAME] [--size HxW] [--threads N] [--train] [--turns N] [--only NAME,NAME] [--intseg PATH]

--only takes of intseg's rivals openvino, openvino-nncf, onnxruntime, torch, litert; channels-last, eager, compile, bf16.

A peer is a process that has loaded and run before the first turn; intseg is started anew for each turn. In a turn the
contenders follow each other after a short rest, and each runs twice and times the second run, so that nobody pays for
the caches that another one emptied. Times are those of a whole prediction, from an image of bytes to a class map, or of
a whole training step. GMAC/s counts products of taps inside the image alone (layers.py). A table that was taken while
other programs used the cores says so. Without --network and --size the cells of docs/benchmarks.md are run. The times
of every run are kept in results/.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from layers import INTSEG, convolutions
from models import MODELS, litert_path, nncf_path, paths

HERE = Path(__file__).parent
RESULTS = HERE / "results"
PREDICTION = {"openvino": "OpenVINO int8", "openvino-nncf": "OpenVINO int8 (NNCF)", "onnxruntime": "ONNX Runtime int8", "torch": "PyTorch int8 (pt2e)",
              "litert": "LiteRT int8"}
TRAINING = {"channels-last": "PyTorch channels_last", "eager": "PyTorch eager", "compile": "torch.compile",
            "bf16": "PyTorch bf16"}
CELLS = [(network, size, threads) for network in ("deeplabv3-resnet50", "fcn8s-vgg16")
         for size in ("513x513", "320x320") for threads in (2, 1)]
# Network, size, batch, width.
TRAINING_CELLS = [("deeplabv3-resnet50", "321x321", 4, 1.0), ("fcn8s-vgg16", "320x320", 4, 1.0),
                  ("fcn8s-vgg16-bn", "120x160", 8, 0.25)]
REST = 0.2


class Peer:
    """A peer in a process of its own."""

    def __init__(self, name, cell, threads):
        self.name = name
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
        if not answer:
            raise RuntimeError(f"{self.name} ended in the middle of a run: memory may have been short")
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
        if not options.wants(name):
            continue
        try:
            found[title] = Peer(name, cell, options.threads)
        except RuntimeError as error:
            print(f"skipped: {error}", file=sys.stderr)
    return found


def busy_seconds():
    """Processor time used by all programs so far."""
    user, nice, system, _, _, irq, softirq, steal, *_ = map(int, Path("/proc/stat").read_text().split(maxsplit=11)[1:11])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def measure(found, turns):
    """Milliseconds of every run, megabytes at the peak, and the cores that others used while all contenders rested."""
    times, memory, others = {name: [] for name in found}, {}, 0.0
    try:
        for _ in range(turns):
            for name, contender in found.items():
                before = busy_seconds()
                time.sleep(REST)
                others += busy_seconds() - before
                milliseconds, megabytes = contender.run()
                times[name].append(milliseconds)
                memory[name] = max(memory.get(name, 0), megabytes)
    finally:
        for contender in found.values():
            contender.close()
    return times, memory, others / (REST * turns * len(found))


def ceiling(options):
    """Billions of int8 products a second that the cores can do."""
    command = [options.intseg, "bench", "--peak", "--threads", str(options.threads), "--json"]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)["int8_gmacs_per_s"]


def report(title, measured, products, peak, images=1):
    """Prints the table of a cell and keeps its times."""
    times, memory, others = measured
    medians = {name: statistics.median(values) for name, values in times.items()}
    fastest = min((value for name, value in medians.items() if name != "intseg"), default=float("nan"))
    head = ["", "median ms", "min ms", "to the fastest peer", "images/s", "GMAC/s", "of the int8 ceiling", "peak MB"]
    print(f"\n**{title}**\n\n| {' | '.join(head)} |\n|---|{'---:|' * (len(head) - 1)}")
    for name, median in sorted(medians.items(), key=lambda item: item[1]):
        rate = products / median / 1e6
        row = [name, f"{median:.1f}", f"{min(times[name]):.1f}", f"{median / fastest:.2f}", f"{images / median * 1e3:.2f}",
               f"{rate:.0f}", f"{100 * rate / peak:.0f} %", f"{memory[name]:.0f}"]
        print(f"| {' | '.join(row)} |")
    print(f"\nCeiling {peak:.0f} GMAC/s." + f" Others kept {others:.1f} cores busy: take these times again." * (others > 0.1),
          flush=True)
    RESULTS.mkdir(exist_ok=True)
    kept = {"title": title, "taken": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), "milliseconds": times,
            "peak_megabytes": memory, "products": products, "ceiling_gmacs_per_s": peak, "others_cores": others}
    stem = "".join(c if c.isalnum() else "-" for c in title)
    (RESULTS / f"{stem}.json").write_text(json.dumps(kept, indent=1))


def prepare(options, network, size):
    """Writes the models that are not there yet. The ONNX files come first: NNCF starts from the float one."""
    steps = [("prepare.py", "", paths(network, size)[1]), ("prepare_nncf.py", "openvino-nncf", nncf_path(network, size)),
             ("prepare_litert.py", "litert", litert_path(network, size))]
    for script, name, path in steps:
        if path.exists() or name and not options.wants(name):
            continue
        command = [sys.executable, str(HERE / script), network, size]
        if subprocess.run(command, stdout=sys.stderr).returncode:
            print(f"{script} failed: its contender is left out", file=sys.stderr)


def predict(options, network, size):
    model = MODELS / f"{network}.iseg"
    MODELS.mkdir(exist_ok=True)
    prepare(options, network, size)
    if not model.exists():
        subprocess.run([options.intseg, "bench", "--arch", network, "--save", model], check=True)
    threads = str(options.threads)
    command = [options.intseg, "bench", "--model", model, "--size", size, "--threads", threads, "--runs", "1", "--json"]
    peak = ceiling(options)
    products = sum(useful for *_, useful in convolutions(network, size))
    found = contenders(options, (network, size, threads), PREDICTION, command)
    title = f"{network}, {size}, {threads} thread{'s' * (options.threads > 1)}"
    report(title, measure(found, options.turns or 9), products, peak)


def train(options, network, size, batch, width):
    command = [options.intseg, "bench", "--arch", network, "--size", size, "--batch", str(batch), "--width", str(width),
               "--threads", str(options.threads), "--train", "--runs", "1", "--json"]
    cell = (network, size, options.threads, batch, width)
    useful = [useful for *_, useful in convolutions(network, size, width)]
    # Forward, the error of the input and the gradient of the weights; nobody needs the error of the image.
    products = batch * (3 * sum(useful) - useful[0])
    peak = ceiling(options)
    title = f"training {network}, width {width:g}, {batch} x {size}, {options.threads} threads"
    report(title, measure(contenders(options, cell, TRAINING, command), options.turns or 5), products, peak, batch)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network")
    parser.add_argument("--size")
    parser.add_argument("--threads", type=int, help="both 2 and 1 for predictions, 2 for training")
    parser.add_argument("--train", action="store_true")
    parser.add_argument("--turns", type=int, help="9 for predictions, 5 for training")
    parser.add_argument("--only", default="")
    parser.add_argument("--intseg", default=str(INTSEG))
    options = parser.parse_args()
    options.wants = lambda name: not options.only or name in options.only.split(",")
    wanted = lambda chosen, value: chosen in (None, value)
    if options.train:
        options.threads = options.threads or 2
        for cell in TRAINING_CELLS:
            if wanted(options.network, cell[0]) and wanted(options.size, cell[1]):
                train(options, *cell)
        return
    cells = [cell for cell in CELLS if all(map(wanted, (options.network, options.size, options.threads), cell))]
    if options.network and options.size and not cells:
        cells = [(options.network, options.size, options.threads or 2)]
    for network, size, threads in cells:
        options.threads = threads
        predict(options, network, size)


if __name__ == "__main__":
    main()
