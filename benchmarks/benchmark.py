"""Measure the command beside `import tensorflow`, in seconds and as multiples of it.

Every run is a process of its own, and all take turns, so that a machine whose speed drifts drifts
for all. Runs on Linux, takes about ten minutes, and wants a machine that does nothing else.
"""

from __future__ import annotations

import argparse
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from Model import Simple_Model  # noqa: E402
from Visualize import Visualize  # noqa: E402

SAMPLE = ROOT / "sample.jpg"
MANY = 20
CHANNELS = 10_912  # of the 26 layers
SUBSET = ("conv_dw_1", "conv_dw_4", "conv_pw_4")  # drawn with one Axes per channel
# The command without its lines about garbage collection.
PLAIN = (
    "import sys; sys.path.insert(0, sys.argv[1]); from Visualize import main; main(sys.argv[2:])"
)


def make_pictures(folder: Path) -> list[Path]:
    """Turn and crop the sample, so that no two pictures are the same."""
    sample = Image.open(SAMPLE)
    paths = []
    for number in range(MANY):
        turned = sample.rotate(90 * (number % 4), expand=True)
        cut = 4 * number
        paths.append(folder / f"{number}.jpg")
        turned.crop((cut, cut, turned.width, turned.height)).save(paths[-1], quality=90)
    return paths


def commands(folder: Path) -> dict[str, list]:
    """Name each command, as arguments of Python; the first one is what the others stand beside."""
    pictures = make_pictures(folder)
    large = folder / "12_megapixels.jpg"
    Image.open(SAMPLE).resize((4032, 3024)).save(large, quality=90)
    output = ["--output_dir", folder / "Images", "--quiet"]
    draw = [ROOT / "Visualize.py", *output, "--image_path"]
    on_one_scale = ["--scale", "layer"]
    return {
        "import tensorflow": ["-c", "import tensorflow"],
        "1 picture": [*draw, pictures[0]],
        "1 picture, --scale layer": [*draw, pictures[0], *on_one_scale],
        "1 picture of 12 megapixels": [*draw, large],
        "1 picture, garbage collected": ["-c", PLAIN, ROOT, *output, "--image_path", pictures[0]],
        f"{MANY} pictures": [*draw, *pictures],
        f"{MANY} pictures, --scale layer": [*draw, *pictures, *on_one_scale],
        f"{MANY} pictures, one processor": [*draw, *pictures],
    }


def run(name: str, arguments: list) -> tuple[float, float]:
    """Run Python as a process of its own; return its seconds and its peak memory in MB."""
    processors = os.sched_getaffinity(0)
    if "one processor" in name:
        os.sched_setaffinity(0, {min(processors)})  # the new process inherits it
    start = time.perf_counter()
    process = subprocess.Popen([sys.executable, *arguments], stderr=subprocess.DEVNULL)
    os.sched_setaffinity(0, processors)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if status:
        sys.exit(f"benchmark: failed: {' '.join(map(str, process.args))}")
    return time.perf_counter() - start, usage.ru_maxrss / 1e3


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


def time_one_figure_per_page(model: Simple_Model, folder: Path) -> float:
    """Save the finished pages of a picture once more, as a Figure each; return the seconds."""
    from matplotlib.figure import Figure

    paths = Visualize(folder / "pages").show_each_feature_map(model.get_feature_map(SAMPLE))
    pages = [np.asarray(Image.open(path)) for path in paths]
    start = time.perf_counter()
    for path, page in zip(paths, pages):
        height, width = page.shape
        figure = Figure((width / 100, height / 100), dpi=100)
        figure.figimage(page, cmap="gray")
        figure.savefig(path, pil_kwargs={"compress_level": 1})
    return time.perf_counter() - start


def time_one_axes_per_channel(model: Simple_Model, folder: Path) -> float:
    """Draw three layers with one Axes per channel, and scale their seconds up to all channels."""
    matplotlib.use("Agg")
    maps = model.get_feature_map(SAMPLE)
    start = time.perf_counter()
    for layer in SUBSET:
        one_axes_per_channel(layer, maps[layer], folder)
    seconds = time.perf_counter() - start
    return seconds * CHANNELS / sum(maps[layer].shape[-1] for layer in SUBSET)


def pictures_per_second(model: Simple_Model, pictures: list[Path]) -> float:
    for picture in pictures[:4]:  # after these, the network is compiled
        model.get_feature_map(picture)
    start = time.perf_counter()
    for picture in 5 * pictures:
        model.get_feature_map(picture)
    return 5 * len(pictures) / (time.perf_counter() - start)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each (default: %(default)s)")
    rounds = parser.parse_args().rounds

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        measured = commands(folder)
        results = {name: [] for name in measured}
        for number in range(rounds + 1):  # the first round is a warm-up
            for name, arguments in measured.items():
                result = run(name, arguments)
                if number > 0:
                    results[name].append(result)
        model = Simple_Model()
        rate = pictures_per_second(model, sorted(folder.glob("[0-9]*.jpg"))[:MANY])
        axes = time_one_axes_per_channel(model, folder)
        figures = time_one_figure_per_page(model, folder)

    seconds = {name: np.array(runs)[:, 0] for name, runs in results.items()}
    megabytes = {name: np.array(runs)[:, 1] for name, runs in results.items()}
    for scale in ("", ", --scale layer"):
        further = seconds[f"{MANY} pictures{scale}"] - seconds[f"1 picture{scale}"]
        seconds[f"each further picture{scale}"] = further / (MANY - 1)
    seconds["one Figure per page, drawing only"] = np.full(rounds, figures)
    seconds["one Axes per channel, drawing only, scaled up"] = np.full(rounds, axes)
    print(
        f"| medians of {rounds} | seconds | × import | peak MB | × import |\n|---|--:|--:|--:|--:|"
    )
    for name in seconds:
        print(f"| {name} {row(seconds, name, '.2f')} {row(megabytes, name, '.0f')} |")
    print(f"\n`get_feature_map` in a loop, compiled: {rate:.1f} pictures per second")


def row(measured: dict[str, np.ndarray], name: str, form: str) -> str:
    """Give the median, and the median of the ratios to `import tensorflow` of the same round."""
    if name not in measured:
        return "| |"
    ratios = measured[name] / measured["import tensorflow"]
    return f"| {statistics.median(measured[name]):{form}} | {statistics.median(ratios):.2f}"


if __name__ == "__main__":
    main()
