"""Draw MobileNet's feature maps: one page per layer, with every channel on it.

Values become levels (colour indices), levels become tiles, and tiles stand side by side on a
page, saved as a PNG. matplotlib gives the colours and draws the texts. NumPy places the tiles: one
Axes per channel would take 100 seconds a picture; one Figure per page, 5 seconds more than NumPy.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import glob
import io
import math
import os
import signal
import sys
import threading
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

import matplotlib
import numpy as np
from matplotlib.ft2font import FT2Font
from numpy import ndarray as Array
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from Model import LAYERS, VALUES, Simple_Model, read_picture


class Visualize:
    """Grids of feature maps, saved as one PNG per layer."""

    def __init__(
        self,
        output_dir: str | Path = "Images",
        scale: str | Sequence[float] = "channel",
        cmap: str | None = None,
        values: str | None = None,
        source: str | Path | None = None,
        figsize: Sequence[float] = (10, 10),
        layer_num: int = 1,
        layer_type: str = "dw",
    ) -> None:
        """Choose where the pages go, how they look and what they say.

        `scale` is "channel" (each channel over its own range), "layer" (all channels on one scale,
        symmetric about zero, or from zero if no value is negative) or two ends, such as (0, 6).
        `cmap` is a matplotlib colormap: by default gray for "channel", coolwarm where zero is the
        middle, else viridis. `values` says in words what the numbers are, as `Simple_Model.values`
        does; `source` is the picture's name. Each value is a square, as large as possible:
        tiles, margins and row numbers must fit into the smaller side of `figsize` (inches of 150
        dots). A value has at least one pixel, and a tile with a label is at least 80 wide; labels
        add to the height. `layer_type` and `layer_num` name a layer that has no name. Raises
        ValueError if `scale` or `cmap` is wrong.
        """
        matplotlib.colormaps.get_cmap(cmap)  # raises ValueError if unknown; None passes
        self.output_dir = output_dir
        self.scale = checked_scale(scale)
        self.cmap = cmap
        self.values = values
        self.source = source
        self.figsize = figsize
        self.layer_num = layer_num
        self.layer_type = layer_type

    def show_each_feature_map(
        self, feature_maps: Sequence[Array] | Mapping[str, Array], labels: Sequence = ()
    ) -> list[Path]:
        """Draw and save many layers; return the paths of their pages, in the same order.

        `feature_maps` are the arrays of all LAYERS (ValueError if there are not 26), or a mapping
        from names to arrays. Each goes through `proccess_each_feature_map`, with the same `labels`.
        """
        if not isinstance(feature_maps, Mapping):
            if len(feature_maps) != len(LAYERS):
                raise ValueError("expected the 26 arrays of get_feature_map, or a dict of arrays")
            feature_maps = dict(zip(LAYERS, feature_maps))
        jobs = []
        with ThreadPoolExecutor() as threads:
            for name, fmap in feature_maps.items():
                # The smallest square that holds all channels: 6 for 32. (Layer checks fmap.)
                square = math.ceil(np.atleast_1d(fmap).shape[-1] ** 0.5)
                jobs.append(
                    threads.submit(self.proccess_each_feature_map, square, fmap, name, labels)
                )
        return [job.result() for job in jobs]

    def proccess_each_feature_map(
        self,
        square: int,
        fmap: Array,
        name: str | None = None,
        labels: Sequence = (),
    ) -> Path:
        """Draw one layer with `square` tiles in a row, save `<name>.png` and return its path.

        `fmap` is an array of shape (1, H, W, C). Its channel c is the tile in row c // square and
        column c % square. Without a `name`, the layer is called conv_<layer_type>_<layer_num>.
        `labels` are C texts or numbers, one above each tile, in place of the numbers around the
        grid. The PNG's metadata say how to read values back. Raises ValueError if the shape, the
        name or the number of labels is wrong or a value is not finite; OSError if the page cannot
        be written.
        """
        name = name or f"conv_{self.layer_type}_{self.layer_num}"
        layer = Layer(name, fmap, self.values, labels, columns=int(square))
        scale = Scale(self.scale, self.cmap, layer)
        zoom = find_zoom(layer, self.figsize)
        tiles = draw_tiles(layer, scale, zoom)
        captions = [
            self.source,
            # A row's number is that of its first channel.
            "" if layer.labels else "channel = row number + column number",
            scale.words,
        ]
        blocks = [
            draw_text(layer.name, NAME_HEIGHT),
            draw_text(layer.facts),
            draw_grid(layer, tiles),
            *map(draw_text, filter(None, captions)),
        ]
        if scale.shared:
            blocks.append(draw_colorbar(scale))
        page = stack(blocks)
        page.putpalette(make_palette(scale.cmap))  # the page holds palette indices
        path = Path(os.path.expanduser(self.output_dir), f"{name}.png")
        return save_png(page, path, self._describe(layer, scale, zoom, tiles))

    def _describe(self, layer: Layer, scale: Scale, zoom: int, tiles: Array) -> dict[str, object]:
        """Say what a page shows, and how its values can be read back."""
        ends = f"{scale.low:.9g} to {scale.high:.9g}" if scale.shared else "see Channel ranges"
        _, _, height, width = tiles.shape
        # The first value is below the name, facts, gap, numbers or label, and a line of frame.
        left = MARGIN + (0 if layer.labels else NUMBERS_WIDTH) + 1
        top = MARGIN + NAME_HEIGHT + LINE_HEIGHT + GAP + LINE_HEIGHT + 1
        return {
            "Title": f"{layer.name} · {layer.facts}",
            "Source": self.source,
            "Description": f"values: {self.values or 'not given'}\n"
            f"range: {layer.lowest.min():.9g} to {layer.highest.max():.9g}\n"
            f"scale: {scale.words}, {ends}\n"
            f"levels: palette index 0 at the low end to {LEVELS - 1} at the high end\n"
            f"colormap: {scale.cmap}\n"
            f"tiles: {layer.columns} in a row, {zoom}×{zoom} pixels per value, the first at "
            f"{left}, {top}, the next {width} to the right, the next row {height} down\n"
            f"software: matplotlib {matplotlib.__version__}, numpy {np.__version__}",
            "Channel ranges": "\n".join(map("{:.9g} {:.9g}".format, layer.lowest, layer.highest)),
            "Labels": "\n".join(layer.labels),
        }


class Layer:
    """A feature map (H, W, C) to draw in rows of tiles, with its labels and properties."""

    def __init__(
        self, name: str, fmap: Array, values: str | None, labels: Sequence, columns: int
    ) -> None:
        if os.path.basename(name) != name:  # such as a/b
            raise ValueError(f"{name!r} cannot be the name of a page")
        shape = np.shape(fmap)
        if len(shape) != 4 or shape[0] != 1 or 0 in shape:
            raise ValueError(f"{name}: expected an array of shape (1, H, W, C), not {shape}")
        _, self.height, self.width, channels = shape
        if len(labels) not in (0, channels):
            raise ValueError(f"{name}: expected {channels} labels, not {len(labels)}")
        self.fmap = np.asarray(fmap[0], np.float32)  # float64 would take twice the memory
        if not np.isfinite(self.fmap).all():
            raise ValueError(f"{name}: some values are NaN or infinite")
        self.name = name
        self.labels = list(map(str, labels))
        self.columns = columns
        self.rows = math.ceil(channels / columns)
        what = "tile" if self.labels else "channel"  # with labels, tiles may be layers or pictures
        size = f"{channels} {what}{'s' if channels > 1 else ''} of {self.height}×{self.width}"
        self.facts = f"{values} · {size}" if values else size
        self.lowest = self.fmap.min((0, 1))  # (C,)
        self.highest = self.fmap.max((0, 1))  # (C,)
        ranges = self.highest - self.lowest
        # A channel is flat if its range is at most a millionth of the widest one.
        self.flat = ranges <= 1e-6 * ranges.max()  # (C,)


# A page is an image of palette indices: 0 to 238 are the levels of the colormap, 239 to 255 are
# greys from black to white, for frames and for the soft edges of letters.
LEVELS = 239  # an odd number, so that zero, the middle of a symmetric scale, is a level
INK = 239  # black
FRAME = 249  # grey
PAPER = 255  # white

SCALES = ("channel", "layer")


def checked_scale(choice: str | Sequence[float]) -> str | tuple[float, ...]:
    """Return one of SCALES, or two finite numbers, the first smaller; else raise ValueError."""
    if isinstance(choice, str) and choice in SCALES:
        return choice
    ends = np.asarray(choice)
    are_numbers = ends.dtype.kind in "iuf"  # integers or floats
    if are_numbers and ends.shape == (2,) and -math.inf < ends[0] < ends[1] < math.inf:
        return tuple(map(float, ends))
    raise ValueError(f"scale={choice!r}: choose channel, layer or two ends, such as (0, 6)")


class Scale:
    """How values become levels: `low` becomes the first, `high` the last; `cmap` colours them.

    The two ends are numbers if all channels share the scale, else arrays with one for each channel.
    """

    def __init__(
        self,
        choice: str | tuple[float, ...],
        cmap: str | None,
        layer: Layer,
    ) -> None:
        self.shared = choice != "channel"
        if choice == "channel":
            self.low = layer.lowest
            self.high = layer.highest
            self.cmap = cmap or "gray"
            self.words = "each tile over its own range"
            if layer.flat.any():
                self.words += f" · {layer.flat.sum()} flat: crossed out"
        else:
            self.low, self.high = find_ends(layer) if choice == "layer" else choice
            self.cmap = cmap or ("coolwarm" if self.low == -self.high else "viridis")
            self.words = "all tiles on one scale"
            beyond = np.mean((layer.fmap < self.low) | (layer.fmap > self.high))
            if beyond:
                self.words += f" · {100 * beyond:.3g}% of the values beyond its ends"

    def levels(self, fmap: Array) -> Array:
        """Turn values (H, W, C) into levels, from 0 to LEVELS - 1; clip those beyond the ends."""
        span = self.high - self.low
        shares = (fmap - self.low) / (span + (span == 0))  # no division by 0
        levels = shares.clip(0, 1) * (LEVELS - 1)
        return np.rint(levels).astype(np.uint8)


def find_ends(layer: Layer) -> tuple[float, float]:
    """Find the ends for "layer": −m and m, or 0 and m if no value is negative.

    m is the 99th percentile of the magnitudes, without those of flat channels: a large constant
    would widen the scale until the other channels look alike.
    """
    values = layer.fmap if layer.flat.all() else layer.fmap[..., ~layer.flat]
    magnitudes = np.abs(values)
    # If nearly all values are 0, so is the percentile; if all are 0, so is the maximum.
    high = float(np.quantile(magnitudes, 0.99) or magnitudes.max() or 1)
    return (-high if layer.lowest.min() < 0 else 0.0), high


# All sizes are in pixels, 150 to the inch.
DOTS_PER_INCH = 150
MARGIN = 17  # around a page
NAME_HEIGHT = 52  # of the line with the layer's name
LINE_HEIGHT = 32  # of other lines
GAP = 12  # above and below the grid, beside numbers and labels, and above the colourbar
TEXT_WIDTH = 1100  # of a line of text, at most
NUMBERS_WIDTH = 72  # left of the tiles


def find_zoom(layer: Layer, figsize: Sequence[float]) -> int:
    """Find how many pixels wide and high a value can be."""
    room = min(figsize) * DOTS_PER_INCH - 2 * MARGIN - NUMBERS_WIDTH
    tile = room // max(layer.rows, layer.columns) - 3  # two pixels of frame, and one of paper
    least = math.ceil(80 / layer.width) if layer.labels else 1  # for about five letters
    return max(least, int(tile // max(layer.height, layer.width)))


def draw_tiles(layer: Layer, scale: Scale, zoom: int) -> Array:
    """Draw a framed tile per channel, under its label, as (rows, columns, height, width)."""
    levels = scale.levels(layer.fmap).transpose(2, 0, 1)  # (C, H, W)
    squares = levels.repeat(zoom, axis=2).repeat(zoom, axis=1)
    channels, height, width = squares.shape
    if not scale.shared:
        diagonal = np.eye(height, width, dtype=bool)
        squares[layer.flat] = np.where(diagonal | np.fliplr(diagonal), INK, PAPER)
    above = LINE_HEIGHT if layer.labels else 0
    # Around the square is a pixel of frame, and then, on the right and below, one of paper.
    shape = (layer.rows * layer.columns, above + height + 3, width + 3)
    tiles = np.full(shape, PAPER, np.uint8)
    tiles[:channels, above:-1, :-1] = FRAME
    tiles[:channels, above + 1 : -2, 1:-2] = squares
    for tile, label in zip(tiles, layer.labels):
        text = draw_text(label, room=width - GAP)
        tile[:LINE_HEIGHT, : text.width] = text
    return tiles.reshape(layer.rows, layer.columns, *shape[1:])


def draw_grid(layer: Layer, tiles: Array) -> Image.Image:
    """Put the tiles side by side; if they have no labels, number the rows and columns."""
    rows, columns, height, width = tiles.shape
    lines = tiles.swapaxes(1, 2)  # (rows, height, columns, width), the order of pixels on a page
    grid = Image.fromarray(lines.reshape(rows * height, -1))
    if layer.labels:
        return ImageOps.expand(grid, (0, GAP), PAPER)
    block = ImageOps.expand(grid, (NUMBERS_WIDTH, GAP + LINE_HEIGHT, 0, GAP), PAPER)
    # Numbers that would touch are left out. `columns` is about as wide as the widest.
    for column in range(0, columns, math.ceil((draw_text(columns).width + GAP) / width)):
        number = draw_text(column)
        left = NUMBERS_WIDTH + column * width + (width - number.width) // 2
        block.paste(number, (left, GAP))
    for row in range(0, rows, math.ceil(LINE_HEIGHT / height)):
        number = draw_text(row * columns)
        left = max(0, NUMBERS_WIDTH - GAP - number.width)
        top = GAP + LINE_HEIGHT + row * height + (height - LINE_HEIGHT) // 2
        block.paste(number, (left, top))
    return block


def draw_colorbar(scale: Scale) -> Image.Image:
    """Draw all levels in a row, with the values of the ends and the middle below."""
    levels = np.arange(LEVELS, dtype=np.uint8).repeat(2)
    bar = Image.fromarray(np.tile(levels, (LINE_HEIGHT, 1)))
    block = ImageOps.expand(bar, (0, GAP, 0, LINE_HEIGHT), PAPER)
    for share in (0, 0.5, 1):
        value = scale.low + share * (scale.high - scale.low)
        number = draw_text(f"{value:.3g}")
        left = share * (bar.width - number.width)
        block.paste(number, (int(left), GAP + LINE_HEIGHT))
    return block


FONT = FT2Font(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf")
FONT_LOCK = threading.Lock()  # a font can draw only one text at a time


@functools.lru_cache(1024)  # most texts recur from page to page
def draw_text(text: object, height: int = LINE_HEIGHT, room: int = TEXT_WIDTH) -> Image.Image:
    """Draw a line of text; cut its end off if it is wider than `room`."""
    # The font lacks control characters, and many others that a name may have.
    shown = "".join(c if FONT.get_char_index(ord(c)) else "\ufffd" for c in str(text))
    with FONT_LOCK:
        FONT.set_size(0.72 * height, 72)  # in points, which are pixels at 72 dots per inch
        FONT.set_text(shown)
        while FONT.get_width_height()[0] > 64 * room:  # in 64ths of a pixel
            shown = f"{shown[:-2]}…"  # drop two letters, or one and the "…"
            FONT.set_text(shown)
        FONT.draw_glyphs_to_bitmap()
        letters = Image.fromarray(FONT.get_image())  # 0, and up to 255 where there is a letter
        line = Image.new("L", (letters.width, height), PAPER)
        # Letters stand at 0.76 of the height; some, such as g, reach lower. All soft edges get
        # indices between INK and PAPER: greys.
        bottom = 0.76 * height + FONT.get_descent() / 64
        line.paste(INK, (0, round(bottom) - letters.height), letters)
    return line


def stack(blocks: Sequence[Image.Image]) -> Image.Image:
    """Stack blocks one below another on a page that is just large enough."""
    width = max(block.width for block in blocks)
    height = sum(block.height for block in blocks)
    page = Image.new("L", (width + 2 * MARGIN, height + 2 * MARGIN), PAPER)
    top = MARGIN
    for block in blocks:
        page.paste(block, (MARGIN, top))
        top += block.height
    return page


def make_palette(cmap: str) -> bytes:
    """Give the RGB bytes of a colormap's levels and of the greys."""
    colormap = matplotlib.colormaps.get_cmap(cmap).resampled(LEVELS)
    levels = colormap(range(LEVELS))[:, :3]  # (239, 3), without alpha, from 0 to 1
    greys = np.linspace([0, 0, 0], 1, 256 - LEVELS)  # (17, 3)
    return np.rint(255 * np.vstack([levels, greys])).astype(np.uint8).tobytes()


def save_png(picture: Image.Image, path: Path, metadata: Mapping[str, object]) -> Path:
    """Save a picture; an older file stays until the new one is complete."""
    chunks = PngInfo()
    for key, text in metadata.items():
        if text:
            # A file name that is not UTF-8 has surrogates, which no PNG can hold.
            chunks.add_text(key, str(text).encode(errors="replace").decode())
    try:
        os.makedirs(path.parent, exist_ok=True)
        # Not a temporary file: the page would keep its mode, 0600.
        with TemporaryDirectory(dir=path.parent) as folder:
            unfinished = Path(folder, path.name)
            picture.save(
                unfinished, pnginfo=chunks, dpi=(DOTS_PER_INCH, DOTS_PER_INCH), compress_level=1
            )
            unfinished.replace(path)
    except OSError as error:
        raise OSError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
    return path


EPILOG = """\
With --scale layer, the scale is 0 to 6 after ReLU6, in viridis. Before ReLU6, it is symmetric about
zero, in coolwarm, and ends at the 99th percentile of the magnitudes.

exit status:  0 all drawn, 2 wrong picture or option, 1 anything else (no connection), 130 stopped
"""


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        usage="python Visualize.py --image_path PICTURE [PICTURE ...] [options]",
        description="Draw MobileNet's feature maps: one page per layer, with every channel on it.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--image_path",
        nargs="+",
        action="extend",
        required=True,
        help="one or more pictures, or patterns such as cats/*.jpg; several get a folder each",
    )
    add("--output_dir", default="Images", help="where the pages go (Images)")
    add("--after", choices=VALUES, default="conv", help="take the values after this step (conv)")
    add("--scale", choices=SCALES, default="channel", help="what gets its own scale (channel)")
    add("--cmap", help="a matplotlib colormap (gray, or see below)")
    add("--weights", default="imagenet", help="imagenet (default), none (untrained) or a file")
    add("--quiet", action="store_true", help="print only errors")
    args = parser.parse_args(argv)
    if args.weights not in ("imagenet", "none") and not os.path.isfile(args.weights):
        parser.error(f"no such weights file: {args.weights!r}")
    return args


def main(argv: list[str] | None = None) -> int:
    """Run the command, whose messages go to stderr; return the exit status."""
    args = parse_arguments(argv)
    try:
        pictures = plan_folders(args.image_path, Path(os.path.expanduser(args.output_dir)))
        refuse_overwriting(pictures)
        # What is printed here, and by Keras's download, goes to stdout.
        with contextlib.redirect_stdout(io.StringIO() if args.quiet else sys.stderr):
            drawn = draw_pictures(pictures, args)
            if drawn:
                print(f"{drawn} of {len(pictures)} pictures drawn, into {args.output_dir!r}")
    except KeyboardInterrupt:
        return 130
    except (ImportError, OSError, ValueError) as error:
        print(f"Visualize.py: error: {error}", file=sys.stderr)
        return 2 if isinstance(error, ValueError) else 1
    return 0 if drawn == len(pictures) else 2


def plan_folders(patterns: Sequence[str], output_dir: Path) -> dict[Path, str]:
    """Choose a folder for the pages of each picture: `output_dir` itself for a single one.

    Else, the folder has the picture's path below their common folder: cats/1, dogs/1.
    """
    paths = {}  # by absolute path, so that a.jpg and ./a.jpg are one
    for pattern in patterns:
        matches = [pattern]  # kept if it exists, or matches nothing
        if not os.path.exists(pattern):
            matches = sorted(glob.glob(pattern, recursive=True)) or matches
        for path in matches:
            paths[os.path.abspath(path)] = path
    common = os.path.commonpath(map(os.path.dirname, paths))
    pictures = {}
    for absolute, picture in paths.items():
        folder = output_dir
        if len(paths) > 1:
            folder /= Path(absolute).relative_to(common).with_suffix("")
        if folder in pictures:
            raise ValueError(f"{picture!r} and another would share {str(folder)!r}: rename one")
        pictures[folder] = picture
    return pictures


def refuse_overwriting(pictures: Mapping[Path, str]) -> None:
    """Raise ValueError if a picture lies where a page will go."""
    names = [f"{page}.png" for page in (*LAYERS, "network_input")]
    folders = {os.path.realpath(folder) for folder in pictures}
    for picture in pictures.values():
        folder, name = os.path.split(os.path.realpath(picture))
        if folder in folders and name in names:
            raise ValueError(f"{picture!r} would be overwritten: choose another --output_dir")


def draw_pictures(pictures: Mapping[Path, str], args: argparse.Namespace) -> int:
    """Draw each picture's pages, and return how many pictures could be read."""
    scale = args.scale
    if args.after == "relu" and args.scale == "layer":
        scale = (0, 6)  # the same for all layers and pictures
    grids = Visualize(scale=scale, cmap=args.cmap)
    model = None
    drawn = 0
    for folder, path in pictures.items():
        try:
            picture = read_picture(path)
        except OSError as error:
            print(f"Visualize.py: error: {error}", file=sys.stderr)
            continue
        if model is None:  # slow, so only after a picture is read and its folder is made
            os.makedirs(folder, exist_ok=True)
            if not os.access(folder, os.W_OK):
                raise OSError(f"cannot write into {str(folder)!r}")
            print("Loading MobileNet ...")
            load_tensorflow()
            model = Simple_Model(None if args.weights == "none" else args.weights, args.after)
            grids.values = model.values
        drawn += 1
        print(f"Drawing {path!r} ({drawn} of {len(pictures)}) into {str(folder)!r} ...")
        grids.output_dir = folder
        grids.source = os.path.basename(path)
        save_png(picture, folder / "network_input.png", {"Source": grids.source})
        # The model prepares it again, but changes nothing: it is upright, RGB and 224×224.
        grids.show_each_feature_map(model.get_feature_map(picture))
    return drawn


def load_tensorflow() -> None:
    """Load Keras; hide what TensorFlow's native code logs: it writes to descriptor 2."""
    stderr = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        import keras

        keras.ops.zeros(1)  # the first operation looks for devices, and logs that, too
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # library warnings are for programmers
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends a run as Ctrl-C does
    os.environ["KERAS_BACKEND"] = "tensorflow"  # the one in requirements.txt
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # a GPU takes longer to start than it saves
    gc.set_threshold(10_000)  # TensorFlow makes a million objects that stay: seldom scan them
    status = main()
    gc.freeze()  # and skip them at the exit
    sys.exit(status)
