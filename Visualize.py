"""Draw MobileNet's feature maps: one picture per layer, with every channel in it."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import functools
import gc
import io
import math
import os
import subprocess
import sys
import threading
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font
from numpy import ndarray as Array
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from Model import LAYERS, Simple_Model, open_picture, read_picture

# A pixel is an index into a palette: the colormap's LEVELS colours, then GREYS up to white. The
# number of levels is odd, so that zero has a level of its own on a symmetric scale.
LEVELS, GREYS = 239, 17
CROSS, LINE, PAPER = LEVELS + 6, LEVELS + 10, LEVELS + 16
PAGE, LEFT, RIGHT, TOP, BOTTOM = 10, 0.45, 0.25, 0.57, 0.22  # a page and its margins, in inches
MAX_DPI = 150  # at most 1500 pixels a side, unless one per value needs more
GAP = 3  # pixels between tiles: the frames of both, and paper between them
FONT = "DejaVu Sans"  # comes with matplotlib
MATPLOTLIB = threading.Lock()  # matplotlib is not thread-safe
SCALES = {"channel": "each channel over its own range", "layer": "all channels on one scale"}
VALUES = {"conv": "convolution output", "bn": "batch-normalised", "relu": "activation after ReLU6"}


class Visualize:
    """Grids of feature maps, saved as one PNG per layer in one folder."""

    def __init__(
        self,
        output_dir: str | os.PathLike = "Images",
        *,
        scale: str = "channel",
        cmap: str | None = None,
        after: str = "conv",
        weights: str | os.PathLike | None = "not stated",
        source: str = "not stated",
    ) -> None:
        """Set where the pictures go, how they look and what they say about their origin.

        `output_dir` is created when needed. `scale` is "channel" or "layer", see `shown_range`.
        `cmap` is a matplotlib colormap: by default gray, and for scale="layer" coolwarm, or
        viridis after ReLU6. `after` and `weights` are those of the `Simple_Model`, `source` is
        the input picture's file name. Raises ValueError if a choice is unknown.
        """
        for choice, choices in ((scale, SCALES), (after, VALUES)):
            if choice not in choices:
                raise ValueError(f"unknown {choice!r}: choose from {', '.join(choices)}")
        if cmap is None:
            cmap = "gray" if scale == "channel" else "viridis" if after == "relu" else "coolwarm"
        if cmap not in matplotlib.colormaps:
            near = difflib.get_close_matches(cmap, matplotlib.colormaps, cutoff=0.4)
            raise ValueError(f"unknown colormap {cmap!r}: try {' or '.join(near) or 'gray'}")
        self.output_dir, self.scale, self.cmap = Path(output_dir), scale, cmap
        self.after, self.weights, self.source = after, weights, source

    def show_each_feature_map(self, feature_maps: list[Array] | Mapping[str, Array]) -> list[Path]:
        """Draw and save many layers; return the paths of their pictures, in the same order.

        `feature_maps` is the list of 26 arrays from `Simple_Model.get_feature_map`, or a mapping
        from names to arrays of shape (1, H, W, C). Raises ValueError for anything else, and what
        `proccess_each_feature_map` raises.
        """
        if isinstance(feature_maps, list) and len(feature_maps) == len(LAYERS):
            feature_maps = dict(zip(LAYERS, feature_maps, strict=True))
        if not isinstance(feature_maps, Mapping):
            raise ValueError(f"expected {len(LAYERS)} arrays in a list or a mapping from names")
        squares = [
            math.ceil(math.prod(np.shape(fmap)[-1:]) ** 0.5) for fmap in feature_maps.values()
        ]
        draw = self.proccess_each_feature_map
        with ThreadPoolExecutor(2) as threads:
            return list(threads.map(draw, squares, feature_maps.values(), feature_maps))

    def proccess_each_feature_map(self, square: int, fmap: Array, name: str = "layer") -> Path:
        """Draw the grid of one layer, save it as `<name>.png` and return its path.

        Channel c of `fmap`, an array of shape (1, H, W, C), is the tile in row c // square and
        column c % square. Each value is a block of k×k identical pixels. A flat channel, whose
        range is below 1e-6 of the layer's largest and so mere rounding, is a crossed box.

        Raises ValueError if the shape, a value or the name does not allow this or the channels
        are more than square², and OSError if the picture cannot be written.
        """
        if not name.strip(".") or Path(name).name != name:
            raise ValueError(f"{name!r} cannot be the name of a file in {str(self.output_dir)!r}")
        shape = np.shape(fmap)
        if len(shape) != 4 or shape[0] != 1 or 0 in shape or square < shape[3] ** 0.5:
            raise ValueError(f"{name}: expected (1, H, W, C ≤ {square}²), not an array of {shape}")
        values = np.asarray(fmap[0], np.float64)
        lowest, highest = values.min(axis=(0, 1)), values.max(axis=(0, 1))  # (C,)
        finite = np.isfinite(lowest) & np.isfinite(highest)
        if not finite.all():
            raise ValueError(f"{name}, channel {finite.argmin()}: some values are not finite")
        spread = highest - lowest
        flat = (spread < 1e-6 * spread.max()) | (spread == 0)
        low, high = shown_range(values, flat, self.scale, self.after)

        # The largest blocks that keep the page within MAX_DPI, then the dpi that just holds them.
        height, width, channels = values.shape
        room = np.subtract(PAGE, (TOP + BOTTOM, LEFT + RIGHT)) / square  # inches
        k = max(int(min((room * MAX_DPI - GAP) / (height, width))), 1)
        cell = k * height + GAP, k * width + GAP
        dpi = math.ceil(max(cell / room))
        grid = mosaic(to_levels(values, low, high), flat, square, k)

        title = f"{showable(name)} · {channels} channels of {height}×{width} · {flat.sum()} flat"
        if self.after != "conv":
            title += f" · {VALUES[self.after]}"
        if self.weights is None:
            title += " · untrained weights"
        page = draw_page(grid, cell, dpi, title, f"{showable(self.source)} · {SCALES[self.scale]}")
        if self.scale == "layer":
            key = draw_key(values[..., ~flat], low, high, VALUES[self.after], dpi)
            page[: key.shape[0], -key.shape[1] :] = key
        picture = Image.fromarray(page)
        colors = matplotlib.colormaps[self.cmap](np.linspace(0, 1, LEVELS))[:, :3]
        greys = np.linspace(0, 1, GREYS)[:, np.newaxis].repeat(3, axis=1)
        picture.putpalette(np.rint(np.vstack([colors, greys]) * 255).astype(np.uint8).tobytes())
        modules = [sys.modules.get(name) for name in ("tensorflow", "keras", "numpy", "matplotlib")]
        versions = [f"{module.__name__} {module.__version__}" for module in modules if module]
        text = {
            "Title": title,
            "Source": self.source,
            "Description": f"values: {VALUES[self.after]}\n"
            f"lowest and highest: {lowest.min():.6g} {highest.max():.6g}\n"
            f"shape: {shape}\n"
            f"scale: {self.scale}, {np.min(low):.6g} to {np.max(high):.6g}\n"
            f"colormap: {self.cmap}\n"
            f"weights: {self.weights or 'none (untrained)'}\n"
            f"tiles: {square} in a row, {k}×{k} pixels per value\n"
            f"first tile, x and y: {round(LEFT * dpi) + 1} {round(TOP * dpi) + 1}\n"
            f"from tile to tile, x and y: {cell[1]} {cell[0]}",
            "Channel ranges": "\n".join(map("{:.6g} {:.6g}".format, lowest, highest)),
            "Software": f"MobileNet feature maps ({', '.join(versions)})",
        }
        return save_png(self.output_dir / f"{name}.png", picture, text, dpi)


def shown_range(values: Array, flat: Array, scale: str, after: str) -> tuple[Array, Array]:
    """Return the values that the first and the last level stand for, for (H, W, C) `values`.

    With scale="channel", these are the lowest and the highest of each channel, two arrays (C,).
    With scale="layer", they are 0 and 6 after ReLU6, its own range; otherwise -b and b, where b
    is the 99th percentile of |value| over the channels that are not flat.
    """
    if scale == "channel":
        return values.min(axis=(0, 1)), values.max(axis=(0, 1))
    if after == "relu" or flat.all():
        return np.float64(0), np.float64(6)
    magnitudes = np.abs(values[..., ~flat])
    bound = np.quantile(magnitudes, 0.99) or magnitudes.max()
    return -bound, bound


def to_levels(values: Array, low: Array, high: Array) -> Array:
    """Scale values from low … high to levels 0 … LEVELS - 1, and those beyond to an end level."""
    spread = np.where(low == high, 1, high - low)
    levels = np.rint((values - low) * ((LEVELS - 1) / spread))
    return np.clip(levels, 0, LEVELS - 1).astype(np.uint8)


def mosaic(levels: Array, flat: Array, square: int, k: int) -> Array:
    """Arrange levels (H, W, C) as framed tiles, `square` in a row, with k×k pixels per level."""
    height, width, channels = levels.shape
    rows, down, across = math.ceil(channels / square), k * height + GAP, k * width + GAP
    tiles = np.full((rows * square, down, across), PAPER, np.uint8)
    tiles[:channels, :-1, :-1] = LINE
    inside = tiles[:channels, 1:-2, 1:-2]
    inside[:] = levels.transpose(2, 0, 1).repeat(k, axis=1).repeat(k, axis=2)
    y, x = (np.abs(np.linspace(-1, 1, side)) for side in inside.shape[1:])
    inside[flat] = np.where(np.abs(np.subtract.outer(y, x)) < 3 / x.size, CROSS, PAPER)
    grid = tiles.reshape(rows, square, down, across).swapaxes(1, 2)
    return grid.reshape(rows * down, square * across)


def draw_page(grid: Array, cell: tuple[int, int], dpi: int, title: str, caption: str) -> Array:
    """Put a grid on paper, with a title, a caption, and numbers for its rows and columns."""
    left, top, bottom, ruler = (round(inches * dpi) for inches in (LEFT, TOP, BOTTOM, 0.2))
    (height, width), (down, across), side = grid.shape, cell, PAGE * dpi
    rows, columns, every = height // down, width // across, math.ceil(ruler / min(cell))
    over = [((c + 0.5) * across, ruler / 2, f"{c}") for c in range(0, columns, every)]
    beside = [(0.85 * left, (r + 0.5) * down, f"{r * columns}") for r in range(0, rows, every)]
    caption += " · channel = row label + column label · crossed box = flat channel"
    page = np.full((side, side), PAPER, np.uint8)
    page[top : top + height, left : left + width] = grid
    size = min(13, 800 / len(title))  # so that a colourbar has room beside it
    page[: top - ruler] = draw_text(top - ruler, side, dpi, size, "left", (left, ruler, title))
    page[top - ruler : top, left : left + width] = draw_text(ruler, width, dpi, 8, "center", *over)
    page[top : top + height, :left] = draw_text(height, left, dpi, 8, "right", *beside)
    page[-bottom:] = draw_text(bottom, side, dpi, 8, "left", (left, bottom / 2, caption))
    return page


def draw_key(values: Array, low: float, high: float, label: str, dpi: int) -> Array:
    """Draw the levels as a colourbar, with pointed ends if some of the values lie beyond it."""
    beyond = np.count_nonzero((values < low) | (values > high)) / max(values.size, 1)
    height, width, end, left = (round(inches * dpi) for inches in (0.1, 1.6, 0.05, 1.25))
    start, right = round(0.3 * dpi), round(RIGHT * dpi)  # room for the first and the last number
    bar = np.pad(np.rint(np.linspace(0, LEVELS - 1, width)), end, "edge")
    words = [
        (left / 2, 1.5 * height, label),
        (left / 2, 3 * height, f"{100 * beyond:.2g} % beyond"),
    ]
    numbers = [
        (start + end + share * width, 3 * height, f"{low + share * (high - low):.3g}")
        for share in (0, 0.5, 1)
    ]
    parts = ((left, words), (start + bar.size + right, numbers))
    key = np.hstack([draw_text(4 * height, w, dpi, 8, "center", *texts) for w, texts in parts])
    for row in range(height):
        cut = abs(row - height // 2) if beyond else end
        key[height + row, left + start + cut : -right - cut] = bar[cut : bar.size - cut]
    return key


# Pages share most of their labels, and drawing these takes longer than all the rest.
@functools.lru_cache(maxsize=256)
def draw_text(height: int, width: int, dpi: int, size: float, align: str, *texts: tuple) -> Array:
    """Draw texts (x, y, string) on paper of (height, width) pixels; y counts from its top."""
    place = {"size": size, "ha": align, "va": "center_baseline", "color": "black"}
    # Said in full, so that a user's matplotlibrc cannot make the labels unreadable.
    font = {"family": FONT, "weight": "normal", "style": "normal", "stretch": "normal"}
    plain = {"usetex": False, "parse_math": False, "antialiased": True}
    with MATPLOTLIB:
        # Half a pixel more, because matplotlib cuts off what rounding leaves of the last one.
        figure = Figure(((width + 0.5) / dpi, (height + 0.5) / dpi), dpi, facecolor="white")
        for x, y, string in texts:
            figure.text(x / width, 1 - y / height, string, **place, **font, **plain)
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        red = np.asarray(canvas.buffer_rgba())[:, :, 0]  # as green and blue: all is grey
    return (LEVELS + np.rint(red * ((GREYS - 1) / 255))).astype(np.uint8)


def showable(text: str) -> str:
    """Replace characters that the font lacks or that do not print, and shorten a long text."""
    known = get_font(findfont(FONT)).get_char_index
    text = "".join(c if c.isprintable() and known(ord(c)) else "\ufffd" for c in text)
    return text if len(text) <= 40 else f"{text[:20]}…{text[-19:]}"


def save_png(path: Path, picture: Image.Image, text: dict[str, str], dpi: int = 96) -> Path:
    """Write a picture beside its place and move it there, so that it is never half-written."""
    info = PngInfo()
    for key, value in text.items():  # a file name may hold bytes that are not text
        info.add_text(key, value.encode(errors="replace").decode(), zip=len(value) > 999)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            picture.save(file, "png", pnginfo=info, dpi=(dpi, dpi), compress_level=1)
            file.flush()
            os.fsync(file.fileno())  # or a power cut could leave an empty file in its place
        os.replace(part, path)
    except OSError as error:
        raise OSError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):
            part.unlink()
    return path


def main(argv: list[str] | None = None) -> int:
    """Run the command line and return its exit status."""
    parser = argparse.ArgumentParser(prog="Visualize.py", description=__doc__)
    parser.error = lambda message: sys.exit(complain(message, 2))  # one line, without the usage
    add = parser.add_argument
    add("--image_path", nargs="+", action="extend", required=True, help="one or more pictures")
    add("--output_dir", default="Images", help="output folder (default: Images)")
    add("--weights", default="imagenet", help="imagenet (default), none (untrained) or a file")
    stages = "draw what comes after the convolution, its batch normalisation or its ReLU6"
    add("--after", choices=VALUES, default="conv", help=f"{stages} (default: conv)")
    scales = "stretch each channel over its own range, or show all of a layer on one scale"
    add("--scale", choices=SCALES, default="channel", help=f"{scales} (default: channel)")
    cmaps = "gray; with --scale layer, coolwarm, or viridis after ReLU6"
    zero = "With --scale channel, the middle of a diverging colormap is not zero."
    add("--cmap", help=f"a matplotlib colormap (default: {cmaps}). {zero}")
    add("--quiet", action="store_true", help="print only errors")
    args = parser.parse_args(argv)
    status = 2  # until the work begins, it is what was typed that is wrong
    try:
        folders = check(args)
        status = 1
        # What is printed on the way goes to stderr; stdout is for the result alone.
        with contextlib.redirect_stdout(io.StringIO() if args.quiet else sys.stderr):
            drawn = run(args, folders)
    except KeyboardInterrupt:
        return 130
    except (ImportError, OSError, ValueError) as error:
        return complain(error, status)
    if drawn and not args.quiet:
        what = repr(drawn[0]) if len(drawn) == 1 else f"each of {len(drawn)} pictures"
        print(f"26 grids and input.png of {what} saved in {args.output_dir!r}")
    return 0 if len(drawn) == len(folders) else 2


def complain(error: Exception | str, status: int = 2) -> int:
    """Print an error as one line, without characters that a terminal would obey."""
    line = " ".join(str(error).split())
    line = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line)
    start = "\r\x1b[K" if sys.stderr.isatty() else ""  # in the place of a progress bar
    print(f"{start}Visualize.py: error: {line}", file=sys.stderr)
    return status


def check(args: argparse.Namespace) -> dict[str, Path]:
    """Give each picture its folder; refuse what would fail later or cost the user a file."""
    Visualize(scale=args.scale, cmap=args.cmap, after=args.after)
    if args.weights not in ("imagenet", "none") and not os.path.isfile(args.weights):
        raise ValueError(f"no weights file {args.weights!r}: name another, imagenet or none")
    folders, owners = {}, {}
    for path in args.image_path:
        stem = os.path.splitext(os.path.basename(path))[0]  # that of a Path could be ".."
        folder = Path(args.output_dir, stem if len(args.image_path) > 1 else "")
        key = str(folder).casefold()  # on some systems, Bird and bird are one folder
        if key in owners:
            raise ValueError(
                f"{owners[key]!r} and {path!r} would share {str(folder)!r}: rename one"
            )
        there = next(place for place in (folder, *folder.parents) if place.exists())
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise ValueError(f"cannot write into {str(there)!r}: choose another --output_dir")
        folders[path], owners[key] = folder, path
    places = {os.path.realpath(folder) for folder in folders.values()}
    for path in folders:
        place, name = os.path.split(os.path.realpath(path))
        if place in places and name in {f"{layer}.png" for layer in (*LAYERS, "input")}:
            raise ValueError(f"{path!r} would be overwritten: choose another --output_dir")
    return folders


def run(args: argparse.Namespace, folders: dict[str, Path]) -> list[str]:
    """Draw each picture into its folder, and return those that could be read."""
    readable, drawn = [], []
    for path in folders:
        try:
            with open_picture(path):
                readable.append(path)
        except (OSError, ValueError) as error:
            complain(error)
    if not readable:
        return []
    print("Loading MobileNet ...")
    keras = import_keras()
    weights = None if args.weights == "none" else args.weights
    model = Simple_Model(weights, args.after)
    terminal = sys.stdout.isatty()
    bar = keras.utils.Progbar(len(readable), unit_name="picture", verbose=int(terminal))
    bar.update(0)
    for number, path in enumerate(readable, 1):
        if not terminal:
            print(f"Drawing {path!r} ({number} of {len(readable)}) ...")
        try:
            picture = read_picture(path)
        except (OSError, ValueError) as error:  # what only its pixels tell
            complain(error)
        else:
            name, folder = os.path.basename(path), folders[path]
            save_png(folder / "input.png", picture, {"Source": name})
            look = {"scale": args.scale, "cmap": args.cmap, "after": args.after}
            visualize = Visualize(folder, **look, weights=weights, source=name)
            visualize.show_each_feature_map(model.get_feature_map(picture))
            drawn.append(path)
        bar.update(number)
    return drawn


def import_keras() -> Any:
    """Import Keras without the lines that native code writes to stderr, unless it fails.

    TensorFlow logs there before any setting can stop it. Another process holds the lines,
    because native code can end this one: TensorFlow aborts on a processor without AVX.
    """
    command = [sys.executable, "-c", "import sys; sys.stderr.write(sys.stdin.read())"]
    # In a session of its own, because Ctrl-C in a terminal reaches the whole process group.
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    stderr = os.dup(2)
    os.dup2(holder.stdin.fileno(), 2)
    try:
        import keras

        keras.ops.zeros(1)  # the first operation looks for devices, and logs that too
        holder.kill()
        return keras
    except KeyboardInterrupt:
        holder.kill()
        raise
    except Exception as error:
        reason = f"cannot load Keras and TensorFlow ({error})"
        raise ImportError(f"{reason}: run 'pip install -r requirements.txt' again") from error
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)
        holder.communicate()


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    gc.set_threshold(10_000)  # importing TensorFlow makes a million objects that stay
    os.environ["KERAS_BACKEND"] = "tensorflow"  # the one in requirements.txt
    status = main()
    gc.freeze()  # spares them at the exit too
    sys.exit(status)
