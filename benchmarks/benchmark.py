"""Measure the tool beside `import tensorflow` and beside one Axes per channel.

Runs on Linux and macOS, takes some minutes, and wants a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import matplotlib
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import Visualize  # noqa: E402
from Model import Simple_Model  # noqa: E402

SAMPLE = ROOT / "sample.jpg"
MANY = 20
LOOP = 100
CHANNELS = 10_912  # of the 26 layers
SUBSET = ("conv_dw_1", "conv_dw_4", "conv_pw_4")  # drawn with one Axes per channel


def run(*arguments: str | Path) -> tuple[float, float]:
    """Run Python as a process of its own; return its seconds and its peak memory in MB."""
    with tempfile.TemporaryFile() as messages:
        start = time.perf_counter()
        process = subprocess.Popen(
            [sys.executable, *arguments], stdout=subprocess.DEVNULL, stderr=messages
        )
        _, status, usage = os.wait4(process.pid, 0)
        seconds = time.perf_counter() - start
        process.returncode = os.waitstatus_to_exitcode(status)
        if status:
            messages.seek(0)
            command = " ".join(map(str, process.args))
            sys.exit(f"{messages.read().decode(errors='replace')}benchmark: failed: {command}")
    return seconds, usage.ru_maxrss / (1e6 if sys.platform == "darwin" else 1e3)


def timed(function: Callable[..., object], *arguments: object) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def one_axes_per_channel(layer: str, fmap: np.ndarray, folder: Path) -> None:
    from matplotlib import pyplot as plt

    channels = fmap.shape[-1]
    square = math.ceil(math.sqrt(channels))
    figure = plt.figure(figsize=(10, 10))
    for channel in range(channels):
        axes = figure.add_subplot(square, square, channel + 1)
        axes.imshow(fmap[0, :, :, channel], cmap="gray")
        axes.axis("off")
    figure.savefig(folder / f"{layer}.png")
    plt.close(figure)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5, help="runs of each (default: %(default)s)")
    parser.add_argument(
        "--full", action="store_true", help="draw every channel in an Axes of its own (minutes)"
    )
    args = parser.parse_args()
    matplotlib.use("Agg")

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pictures = [folder / f"{number}.jpg" for number in range(MANY)]
        for path in pictures:
            shutil.copy(SAMPLE, path)
        visualize = (ROOT / "Visualize.py", "--output_dir", folder, "--image_path")
        commands = {
            "import tensorflow": ("-c", "import tensorflow"),
            "the command, 1 picture": (*visualize, SAMPLE),
            f"the command, {MANY} pictures": (*visualize, *pictures),
            "the same, --scale layer, 1 picture": (*visualize, SAMPLE, "--scale", "layer"),
            f"the same, --scale layer, {MANY} pictures": (
                *visualize,
                *pictures,
                "--scale",
                "layer",
            ),
        }
        # In turn, so that a machine whose speed drifts drifts for all; the first is a warm-up.
        runs = [[run(*command) for command in commands.values()] for _ in range(args.pairs + 1)]

        model = Simple_Model()
        feature_maps = model.get_feature_map(SAMPLE)
        drawing = {}
        for scale in Visualize.SCALES:
            Visualize.draw_text.cache_clear()  # as in a new process
            draw = Visualize.Visualize(folder, scale=scale).show_each_feature_map
            drawing[scale] = [timed(draw, feature_maps) for _ in runs]
        loops = [timed(loop, Simple_Model(), eager) for _ in range(3) for eager in (True, False)]

        layers = dict(zip(model.output_layers, feature_maps, strict=True))
        chosen = layers if args.full else SUBSET
        axes = sum(timed(one_axes_per_channel, layer, layers[layer], folder) for layer in chosen)
        drawn = sum(layers[layer].shape[-1] for layer in chosen)
        axes *= CHANNELS / drawn  # 1 with --full

    seconds, peaks = np.array(runs[1:]).transpose(2, 1, 0)  # each (command, run)
    print(f"{'medians of ' + str(args.pairs):<40}   seconds   ratio    peak MB   ratio")
    for name, time_row, peak_row in zip(commands, seconds, peaks, strict=True):
        times, memory = table_row(time_row, seconds[0]), table_row(peak_row, peaks[0])
        print(f"{name:<40}{times}{memory}")
    for one, scale in ((1, "channel"), (3, "layer")):
        further = (seconds[one + 1] - seconds[one]) / (MANY - 1)
        print(f"{f'each further picture, --scale {scale}':<40}{table_row(further, seconds[0])}")
        name = f"drawing alone, 26 grids, --scale {scale}"
        print(f"{name:<40}{table_row(drawing[scale][:1], seconds[0])} at first")
        print(f"{'  again':<40}{table_row(drawing[scale][1:], seconds[0])}")
    print(f"{'one Axes per channel, once':<40}{table_row([axes], seconds[0])}")
    if not args.full:
        print(f"  (scaled up from {drawn:,} of {CHANNELS:,} channels; --full draws them all)")
    rates = LOOP / np.reshape(loops, (3, 2))
    eager, compiled = np.median(rates, axis=0)
    ratio = np.median(rates[:, 1] / rates[:, 0])
    print(f"get_feature_map in a loop of {LOOP}: {compiled:.1f} pictures per second,")
    print(f"  {ratio:.2f} times the {eager:.1f} of the network when it is never compiled")


def loop(model: Simple_Model, eager: bool) -> None:
    """Compute the feature maps of one picture again and again."""
    for _ in range(LOOP):
        if eager:
            model._calls = 0  # so that get_feature_map does not change over to compiled code
        model.get_feature_map(SAMPLE)


def table_row(values: Sequence[float], beside: np.ndarray) -> str:
    """Give the median, and the median of the ratios to the run of `import tensorflow`."""
    ratio = statistics.median(np.divide(values, beside))
    return f"{statistics.median(values):>10.2f}{ratio:>8.2f}"


if __name__ == "__main__":
    main()
