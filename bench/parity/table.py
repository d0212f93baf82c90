"""Tables the runs of run.sh, keeps their logs without the layers' states, and draws the loss curves.

    python table.py OUT [--logs DIR] [--picture FILE.svg]

A row is an arithmetic and a way of being deployed: with running statistics of batch normalisation, with statistics
measured over batches of their own, or with the average of the last weights besides.
"""

import argparse
import json
import math
import statistics
from pathlib import Path

ROWS = {"integer": "integer", "usual": "float", "l1": "float, L1 BN"}
COLOURS = {"integer": "#c0392b", "usual": "#2c3e50", "l1": "#2980b9"}
WAYS = ("running", "measured", "averaged")


def read(folder):
    """Steps with their losses, and for each way the last evaluation in per cent."""
    losses, scores, kept = [], {}, []
    for line in open(folder / "log.jsonl"):
        row = json.loads(line)
        if row["event"] == "step":
            losses.append((row["step"], row["loss"]))
            kept.append({key: row[key] for key in ("event", "step", "loss", "seconds")})
        if row["event"] == "eval":
            unit = 100 if row["miou"] <= 1 else 1
            way = row.get("way", "running")
            scores[way] = unit * row["miou"], unit * row["pixel_accuracy"]
            kept.append(dict(event="eval", step=row["step"], way=way, miou=scores[way][0], pixel_accuracy=scores[way][1]))
    return losses, scores, kept


def smooth(losses, points=25):
    """Means over stretches, so that about so many points remain."""
    width = max(1, len(losses) // points)
    for at in range(0, len(losses) - width + 1, width):
        part = losses[at : at + width]
        yield part[-1][0], statistics.mean(loss for _, loss in part)


def picture(runs, path):
    """One line a run, an SVG."""
    width, height, left, bottom = 720, 360, 50, 30
    last = max(losses[-1][0] for losses in runs.values())
    lowest, highest = 0.5, 2.0
    place = lambda step, loss: (
        left + (width - left - 10) * step / last,
        10 + (height - bottom - 10) * (highest - min(loss, highest)) / (highest - lowest),
    )
    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="12">']
    parts.append(f'<rect width="{width}" height="{height}" fill="white"/>')
    for loss in (0.5, 0.75, 1.0, 1.5, 2.0):
        x, y = place(0, loss)
        parts.append(f'<path d="M{x} {y:.1f}H{width - 10}" stroke="#ddd"/><text x="8" y="{y + 4:.1f}">{loss}</text>')
    for (kind, _), losses in runs.items():
        points = " ".join(f"{x:.1f},{y:.1f}" for x, y in (place(*point) for point in smooth(losses)))
        parts.append(f'<polyline points="{points}" fill="none" stroke="{COLOURS[kind]}" stroke-width="1.3"/>')
    for row, (kind, name) in enumerate(ROWS.items()):
        parts.append(f'<text x="{width - 130}" y="{30 + 18 * row}" fill="{COLOURS[kind]}">{name}</text>')
    parts.append(f'<text x="{width // 2}" y="{height - 8}">step (of {last})</text></svg>')
    path.write_text("\n".join(parts) + "\n")


def squared_error(values):
    """The variance of the values' mean; unknown for one."""
    return statistics.variance(values) / len(values) if len(values) > 1 else math.nan


def line(name, way, runs):
    """A row of the table, and the mIoU of each of its runs."""
    found = [(losses, scores[way]) for losses, scores in runs if way in scores]
    if not found:
        return None, []
    mious = [score[0] for _, score in found]
    tails = [statistics.mean(loss for _, loss in losses[-5:]) for losses, _ in found]
    each = ", ".join(f"{miou:.1f}" for miou in mious)
    error = f"{statistics.mean(mious):.2f} ± {math.sqrt(squared_error(mious)):.2f}"
    accuracy = statistics.mean(score[1] for _, score in found)
    text = f"| {name} | {way} | {each} | {error} | {max(mious) - min(mious):.1f} | {accuracy:.1f} | {statistics.mean(tails):.3f} |"
    return text, mious


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--logs", type=Path)
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    curves, mious = {}, {}
    print("| arithmetic | deployed | mIoU of each seed | mean ± its error | spread | pixel accuracy | last loss |")
    print("|---|---|---|---|---|---|---|")
    for kind, name in ROWS.items():
        runs = []
        for folder in sorted(options.out.glob(f"{kind}-*")):
            losses, scores, kept = read(folder)
            runs.append((losses, scores))
            curves[kind, folder.name] = losses
            if options.logs:
                options.logs.mkdir(parents=True, exist_ok=True)
                text = "".join(json.dumps(row) + "\n" for row in kept)
                (options.logs / f"{folder.name}.jsonl").write_text(text)
        for way in WAYS:
            text, mious[kind, way] = line(name, way, runs)
            if text:
                print(text)
    print()
    for (kind, way), scores in mious.items():
        integer = mious["integer", way]
        if kind != "integer" and scores and integer:
            gap = statistics.mean(integer) - statistics.mean(scores)
            error = math.sqrt(squared_error(integer) + squared_error(scores))
            print(f"integer less {ROWS[kind]}, {way}: {gap:+.2f} ± {error:.2f}")
    if options.picture:
        picture(curves, options.picture)


if __name__ == "__main__":
    main()
