"""Draw MobileNet's feature maps: one picture per layer, with every channel in it."""

from __future__ import annotations

import argparse
import contextlib
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
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import get_font
from numpy import ndarray as Array
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from Model import LAYERS, Simple_Model, open_picture, read_picture

# The palette: LEVELS colours, an odd number, so that zero can have its own; and GREYS up to white.
LEVELS, GREYS = 239, 17
CROSS, LINE, PAPER = LEVELS + 6, LEVELS + 10, LEVELS + 16  # three of the greys
LEFT, RIGHT, HEAD, TOP, BOTTOM, MIN_WIDTH = 68, 38, 50, 80, 75, 1026  # margins, room for texts
GAP, ROOM = 3, 1394  # pixels from tile to tile (frame, paper, frame), and for all tiles in a row
FONT = Path(matplotlib.get_data_path(), "fonts/ttf/DejaVuSans.ttf")
MATPLOTLIB = threading.Lock()  # matplotlib is not thread-safe
SCALES = {"channel": "each channel over its own range", "layer": "all channels on one scale"}
VALUES = {"conv": "convolution output", "bn": "batch-normalised", "relu": "activation after ReLU6"}


@dataclass
class Visualize:
    """Grids of feature maps, saved as one PNG per layer. An unknown choice is a ValueError."""

    output_dir: str | os.PathLike = "Images"  # created when needed
    scale: str = "channel"  # or "layer", see `to_levels`
    cmap: str | None = None  # matplotlib's: gray; for a layer's scale coolwarm, or viridis
    after: str = "conv"  # the stage of the `Simple_Model`
    weights: str | os.PathLike | None = "not stated"  # those of the `Simple_Model`
    source: str = "source not stated"  # the picture's file name

    def __post_init__(self) -> None:
        if self.scale not in SCALES or self.after not in VALUES:
            choices = f"scale from {', '.join(SCALES)}, after from {', '.join(VALUES)}"
            raise ValueError(f"scale={self.scale!r}, after={self.after!r}: choose {choices}")
        colors = "viridis" if self.after == "relu" else "coolwarm"
        self.cmap = self.cmap or (colors if self.scale == "layer" else "gray")
        levels = matplotlib.colormaps.get_cmap(self.cmap)(np.linspace(0, 1, LEVELS))[:, :3]
        greys = np.linspace((0, 0, 0), (1, 1, 1), GREYS)
        self.palette = np.rint(np.vstack([levels, greys]) * 255).astype(np.uint8).tobytes()

    def show_each_feature_map(self, feature_maps: list[Array] | Mapping[str, Array]) -> list[Path]:
        """Draw and save many layers; return the paths of their pictures, in the same order.

        `feature_maps` is the list of 26 arrays from `Simple_Model.get_feature_map`, or a mapping
        from names to arrays of shape (1, H, W, C). Raises as `proccess_each_feature_map` does.
        """
        if isinstance(feature_maps, list) and len(feature_maps) == len(LAYERS):
            feature_maps = dict(zip(LAYERS, feature_maps, strict=True))
        if not isinstance(feature_maps, Mapping):
            raise ValueError(f"expected {len(LAYERS)} arrays in a list or a mapping from names")
        maps = feature_maps.values()
        squares = [math.ceil((np.shape(fmap) or (0,))[-1] ** 0.5) for fmap in maps]
        with ThreadPoolExecutor(2) as threads:
            return list(threads.map(self.proccess_each_feature_map, squares, maps, feature_maps))

    def proccess_each_feature_map(self, square: int, fmap: Array, name: str = "layer") -> Path:
        """Draw the grid of one layer, save it as `<name>.png` and return its path.

        Channel c of `fmap`, an array of shape (1, H, W, C), is the tile in row c // square and
        column c % square. Raises ValueError if the shape or the name is invalid, a value is not
        finite or the channels are more than square², and OSError if the file cannot be written.
        """
        path, shape, what = Path(self.output_dir, f"{name}.png"), np.shape(fmap), VALUES[self.after]
        if not isinstance(name, str) or path.name != f"{name}.png" or not name.strip("."):
            raise ValueError(f"{name!r} cannot be the name of a file")
        if len(shape) != 4 or shape[0] != 1 or 0 in shape or square < shape[3] ** 0.5:
            raise ValueError(f"{name}: expected (1, H, W, C ≤ {square}²), not an array of {shape}")
        values = np.asarray(fmap[0], np.float32)  # half the memory of float64
        if not np.isfinite(values).all():
            raise ValueError(f"{name}: some values are not finite")
        lowest, highest = values.min(axis=(0, 1)), values.max(axis=(0, 1))  # (C,)
        flat = highest - lowest <= 1e-6 * (highest - lowest).max()  # a millionth of the widest
        levels, low, high = to_levels(values, flat, self.scale, self.after)
        _, height, width, channels = shape
        k = max((ROOM // square - GAP) // max(height, width), 1)
        tiles = mosaic(levels, flat, square, k)

        title = f"{showable(name)} · {what} · {channels} channels of {height}×{width}"
        title += f" · {flat.sum()} flat" + ("" if self.weights else " · untrained weights")
        key, beyond, ends = [], 0, "see Channel ranges"
        if np.ndim(low) == 0:  # one scale for all channels
            beyond = 100 * np.mean(((values < low) | (values > high))[..., ~flat])
            ends = f"{low:.6g} to {high:.6g}"
            key = [f"{n:.3g}".replace("-", "−") for n in (low, (low + high) / 2, high)]
            key.append(f"{what}, {beyond:.2g} % beyond" if beyond else what)
        caption = f"{showable(self.source)}\n{SCALES[self.scale]}\n"
        caption += "channel = row label + column label · crossed box = flat channel"
        used = [m for m in ("tensorflow", "keras", "numpy", "matplotlib") if m in sys.modules]
        text = {
            "Title": title,
            "Source": self.source,
            "Description": f"values: {what}, {lowest.min():.6g} to {highest.max():.6g}\n"
            f"scale: {self.scale}, {ends}, {self.cmap}\n"
            f"weights: {self.weights or 'none (untrained)'}\n"
            f"tiles: {square} in a row, {k}×{k} pixels per value",
            "Channel ranges": "\n".join(map("{:.6g} {:.6g}".format, lowest, highest)),
            "Software": ", ".join(f"{m} {sys.modules[m].__version__}" for m in used),
        }
        picture = Image.fromarray(draw_page(tiles, title, caption, key, beyond > 0))
        picture.putpalette(self.palette)
        return save_png(path, picture, text)


def to_levels(values: Array, flat: Array, scale: str, after: str) -> tuple[Array, Any, Any]:
    """Turn values (H, W, C) into levels; return them and the values of the first and last one.

    On a layer's scale, these are 0 and 6 after ReLU6, its own range; otherwise -b and b, where b
    is the 99th percentile of |value| over the channels that are not flat. On a channel's scale, or
    if all are flat, these are each channel's lowest and highest value: two arrays (C,).
    """
    low, high = values.min(axis=(0, 1)), values.max(axis=(0, 1))
    if scale == "layer" and not flat.all():
        magnitudes = np.abs(values[..., ~flat])
        bound = np.quantile(magnitudes, 0.99) or magnitudes.max()
        low, high = (0, 6) if after == "relu" else (-bound, bound)
    shares = (values - low) / np.where(low == high, 1, high - low)
    return np.rint(shares.clip(0, 1) * (LEVELS - 1)).astype(np.uint8), low, high


def mosaic(levels: Array, flat: Array, square: int, k: int) -> Array:
    """Make framed tiles (rows, pixels down, columns, pixels across) of levels (H, W, C)."""
    height, width, channels = levels.shape
    rows, down, across = math.ceil(channels / square), k * height + GAP, k * width + GAP
    tiles = np.full((rows * square, down, across), PAPER, np.uint8)
    tiles[:channels, :-1, :-1] = LINE
    inside = tiles[:channels, 1:-2, 1:-2]
    inside[:] = levels.transpose(2, 0, 1).repeat(k, axis=1).repeat(k, axis=2)
    y, x = (np.abs(np.linspace(-1, 1, side)) for side in inside.shape[1:])  # 0 at the centre
    inside[flat] = np.where(np.abs(y[:, np.newaxis] - x) < 3 / x.size, CROSS, PAPER)  # diagonals
    return tiles.reshape(rows, square, down, across).swapaxes(1, 2)


def draw_page(tiles: Array, title: str, caption: str, key: list[str], pointed: bool) -> Array:
    """Put tiles on paper with numbered rows and columns; `key` has a colourbar's four texts."""
    rows, down, columns, across = tiles.shape
    height, width = rows * down, columns * across
    wide, every = max(LEFT + width + RIGHT, MIN_WIDTH), math.ceil(30 / min(down, across))
    page = np.full((TOP + height + BOTTOM, wide), PAPER, np.uint8)
    page[TOP:-BOTTOM, LEFT : LEFT + width] = tiles.reshape(height, width)
    over = [((c + 0.5) * across, 15, str(c), 8, "center") for c in range(0, columns, every)]
    page[HEAD:TOP, LEFT : LEFT + width] = draw_text(TOP - HEAD, width, *over)
    beside = [(58, (r + 0.5) * down, str(r * columns), 8, "right") for r in range(0, rows, every)]
    page[TOP:-BOTTOM, :LEFT] = draw_text(height, LEFT, *beside)
    page[:HEAD] = draw_text(HEAD, wide, (LEFT, 28, title, min(13, 850 / len(title)), "left"))
    page[-BOTTOM:] = draw_text(BOTTOM, wide, (LEFT, 38, caption, 8, "left"))
    if key:
        places = (45, 58), (165, 58), (285, 58), (165, 15)
        texts = [(*place, words, 8, "center") for place, words in zip(places, key, strict=True)]
        page[-BOTTOM:, -330:] = draw_text(BOTTOM, 330, *texts)
        bar = np.rint(np.linspace(0, LEVELS - 1, 240))  # each row loses `cut` pixels at both ends
        for row, cut in enumerate([abs(r) if pointed else 0 for r in range(-7, 8)], start=-45):
            page[row, cut - 285 : -45 - cut] = bar[cut : 240 - cut]
    return page


# Pages share most of their labels, and drawing these takes longer than all the rest.
@functools.lru_cache(maxsize=128)
def draw_text(height: int, width: int, *texts: tuple) -> Array:
    """Draw texts (x, y, string, size in points, alignment) on paper of (height, width) pixels."""
    plain = {"va": "center", "font": FONT, "color": "black", "parse_math": False, "usetex": False}
    with MATPLOTLIB:
        # Half a pixel more, because matplotlib cuts off what rounding leaves of the last one.
        figure = Figure(((width + 0.5) / 150, (height + 0.5) / 150), 150, facecolor="white")
        for x, y, words, size, align in texts:
            figure.text(x / width, 1 - y / height, words, size=size, ha=align, **plain)
        FigureCanvasAgg(figure).draw()
        red = np.asarray(figure.canvas.buffer_rgba())[:, :, 0]  # as green and blue: all is grey
        return np.linspace(LEVELS, PAPER, 256).round().astype(np.uint8)[red]


def showable(text: str) -> str:
    """Replace characters that the font lacks or that do not print, and shorten a long text."""
    known = get_font(FONT).get_char_index
    text = "".join(c if c.isprintable() and known(ord(c)) else "\ufffd" for c in text)
    return text if len(text) <= 40 else f"{text[:20]}…{text[-19:]}"


def save_png(path: Path, picture: Image.Image, text: dict[str, str]) -> Path:
    """Write a picture beside its place and move it there, so that it is never half-written."""
    info = PngInfo()
    for key, value in text.items():  # a file name may hold bytes that are not text
        info.add_text(key, value.encode(errors="replace").decode(), zip=True)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=path.parent, prefix=".") as folder:
            picture.save(Path(folder, path.name), pnginfo=info, compress_level=1)
            Path(folder, path.name).replace(path)
    except OSError as error:
        raise OSError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
    return path


def main(argv: list[str] | None = None) -> int:
    """Run the command, with progress on stderr and the result on stdout; return the exit status."""
    parser = argparse.ArgumentParser(description=f"{__doc__} The first choice is the default.")
    parser.error = lambda message: sys.exit(complain(message))  # one line, without the usage
    add = parser.add_argument
    add("--image_path", nargs="+", action="extend", required=True, help="one or more pictures")
    add("--output_dir", default="Images", help="output folder (default: Images)")
    weights = "imagenet, none (an untrained network) or a file"
    add("--weights", default="imagenet", type=lambda w: None if w == "none" else w, help=weights)
    add("--after", choices=VALUES, default="conv", help=" or ".join(VALUES.values()))
    add("--scale", choices=SCALES, default="channel", help=" or ".join(SCALES.values()))
    add("--cmap", help="matplotlib colormap; its middle is 0 only with --scale layer before ReLU6")
    add("--quiet", action="store_true", help="print only errors")
    args = parser.parse_args(argv)
    try:
        grids = check(args)
        with contextlib.redirect_stdout(io.StringIO() if args.quiet else sys.stderr):
            drawn = run(args, grids)
    except KeyboardInterrupt:
        return 130
    except (ImportError, OSError, ValueError) as error:
        return complain(error, 2 if isinstance(error, ValueError) else 1)
    if drawn and not args.quiet:
        print(f"{drawn} of {len(grids)} done: 26 grids and input.png each, in {args.output_dir!r}")
    return 0 if drawn == len(grids) else 2


def complain(error: Exception | str, status: int = 2) -> int:
    """Print an error as one line, without characters that a terminal would obey."""
    line = "".join(c if c.isprintable() else " " for c in str(error))
    start = "\r\x1b[K" if sys.stderr.isatty() else ""  # in the place of a progress bar
    print(f"{start}Visualize.py: error: {line}", file=sys.stderr)
    return status


def check(args: argparse.Namespace) -> dict[str, Visualize]:
    """Prepare the grids of each picture; refuse what would fail later or overwrite a picture."""
    if args.weights not in (None, "imagenet") and not os.path.isfile(args.weights):
        raise ValueError(f"no weights file {args.weights!r}: name another, imagenet or none")
    grids, owners, files, several = {}, {}, set(), len(set(args.image_path)) > 1
    for path in args.image_path:
        name = os.path.basename(path)
        folder = Path(args.output_dir, os.path.splitext(name)[0] if several else "")
        owner = owners.setdefault(str(folder).casefold(), path)  # some systems ignore case
        if owner != path:
            raise ValueError(f"{owner!r} and {path!r} would share {str(folder)!r}: rename one")
        there = next(place for place in (folder, *folder.parents) if os.path.lexists(place))
        if not there.is_dir() or not os.access(there, os.W_OK):
            raise ValueError(f"not a writable folder: {str(there)!r}: choose another --output_dir")
        grids[path] = Visualize(folder, args.scale, args.cmap, args.after, args.weights, name)
        files |= {os.path.realpath(folder / f"{file}.png") for file in (*LAYERS, "input")}
    if lost := files.intersection(map(os.path.realpath, grids)):
        raise ValueError(f"{min(lost)!r} would be overwritten: choose another --output_dir")
    return grids


def run(args: argparse.Namespace, grids: dict[str, Visualize]) -> int:
    """Draw each picture's grids, and return how many pictures could be read."""
    readable, drawn = [], 0
    for path in grids:
        try:
            with open_picture(path):
                readable.append(path)
        except (OSError, ValueError) as error:
            complain(error)
    if not readable:
        return 0
    print("Loading MobileNet ...")
    keras, terminal = import_keras(), sys.stdout.isatty()
    model = Simple_Model(args.weights, args.after)
    bar = keras.utils.Progbar(len(readable), unit_name="picture", verbose=int(terminal))
    for number, path in enumerate(readable):
        bar.update(number)
        if not terminal:
            print(f"Drawing {path!r} ({number + 1} of {len(readable)}) ...")
        try:
            picture = read_picture(path)
        except (OSError, ValueError) as error:  # found only on reading the pixels
            complain(error)
            continue
        save_png(grids[path].output_dir / "input.png", picture, {"Source": grids[path].source})
        grids[path].show_each_feature_map(model.get_feature_map(picture))
        drawn += 1
    bar.update(len(readable))
    return drawn


def import_keras() -> Any:
    """Import Keras without the lines that its native code logs, unless the import fails.

    A helper process, deaf to Ctrl-C, holds the lines, because TensorFlow aborts without AVX.
    """
    hold = [sys.executable, "-c", "import sys; sys.stderr.write(sys.stdin.read())"]
    with subprocess.Popen(hold, stdin=subprocess.PIPE, start_new_session=True) as holder:
        stderr = os.dup(2)
        os.dup2(holder.stdin.fileno(), 2)
        try:
            import keras

            keras.ops.zeros(1)  # the first operation looks for devices, and logs that too
            holder.kill()
            return keras
        except Exception as error:
            reason = f"cannot load Keras and TensorFlow ({error})"
            raise ImportError(f"{reason}: run 'pip install -r requirements.txt' again") from error
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    gc.set_threshold(10_000)  # importing TensorFlow makes a million objects that stay
    os.environ["KERAS_BACKEND"] = "tensorflow"  # the one in requirements.txt
    status = main()
    gc.freeze()  # so the exit does not search them either
    sys.exit(status)
