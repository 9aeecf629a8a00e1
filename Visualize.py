"""Draw MobileNet's feature maps: one page per layer, with every channel on it."""

from __future__ import annotations

import argparse
import contextlib
import functools
import gc
import glob
import io
import math
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory, TemporaryFile

import matplotlib
import numpy as np
from matplotlib import style
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy import ndarray as Array
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from Model import LAYERS, VALUES, Simple_Model, read_picture

SCALES = {"channel": "each tile over its own range", "layer": "all tiles on one scale"}
FLAT = 1e-6  # a channel is flat if its range is at most this part of the layer's widest range

# A page is an image of palette indices: 0 to 238 are the levels of the colormap, 239 to 255 are
# greys from black to white. In draw_text, matplotlib draws in the light greys 239 to 255, and these
# bytes are taken for indices, where they mean black to white.
LEVELS = 239  # an odd number, so that the middle of a symmetric scale is a level: zero
GREYS = 17
INK = LEVELS  # black
FRAME = LEVELS + 10  # light grey
PAPER = LEVELS + GREYS - 1  # white

# A page is made of blocks, one below the other: the layer's name, its facts, the grid of tiles with
# labels or numbers, a caption, and a colourbar. Text sizes are in points, the rest in pixels.
DOTS_PER_INCH = 150
NAME_SIZE = 18
TEXT_SIZE = 11
LINE_HEIGHT = 32  # at TEXT_SIZE
LETTER_WIDTH = 14  # of most letters
LONGEST_LINE = 80  # letters
MARGIN = 17
ROW_NUMBERS_WIDTH = 72  # left of the tiles
COLUMN_NUMBER_WIDTH = 54  # room for three digits above a column
NUMBER_GAP = 10  # between a row's number and its tiles
TILE_GAP = 3  # what draw_tiles puts between two tiles: frame, paper and frame
LABELLED_WIDTH = 80  # of a tile with a label, at least: it has room for five letters

Page = Image.Image  # or a part of one
ScaleChoice = str | Sequence[float]
INPUT_NAME = "network_input"  # of the file that shows the picture as the network sees it


class Visualize:
    """Grids of feature maps, saved as one PNG per layer."""

    def __init__(
        self,
        output_dir: str | Path = "Images",
        scale: ScaleChoice = "channel",
        cmap: str | None = None,
        values: str | None = None,
        source: str | Path | None = None,
        figsize: Sequence[float] = (10, 10),
        layer_num: int = 1,
        layer_type: str = "dw",
    ) -> None:
        """Choose where the pages go, how they look and what they say.

        `output_dir` is created when needed. `scale` is "channel" (each channel over its own range),
        "layer" (all channels on one scale, symmetric about zero) or the values of the scale's two
        ends, such as (0, 6) after ReLU6. `cmap` is a matplotlib colormap: by default gray for
        "channel", coolwarm where zero is the middle of the scale, else viridis. `values` are words
        for what the numbers are, such as `Simple_Model.values`; `source` is the picture's name.
        The smaller side of `figsize` (inches, at 150 dots) limits the width of a grid: each value
        becomes a square of as many pixels as fit, but of at least one, and a tile with a label at
        least 80 pixels wide. `layer_type` and `layer_num` are used where a layer has no name.

        Raises ValueError if `scale` or `cmap` is unknown, as setting one of them later does.
        """
        self.output_dir = output_dir
        self.scale = scale
        self.cmap = cmap
        self.values = values
        self.source = source
        self.figsize = figsize
        self.layer_num = layer_num
        self.layer_type = layer_type

    def __setattr__(self, name: str, value: object) -> None:
        """Refuse a scale or a colormap that cannot be drawn, whenever it is set."""
        if name == "scale":
            check_scale(value)
        if name == "cmap":
            matplotlib.colormaps.get_cmap(value)  # raises ValueError, but not for None
        super().__setattr__(name, value)

    @style.context("default")  # whatever the user's own style is
    def show_each_feature_map(
        self, feature_maps: Sequence[Array] | Mapping[str, Array], labels: Sequence | Mapping = ()
    ) -> list[Path]:
        """Draw and save many layers; return the paths of their pages, in the same order.

        `feature_maps` are the 26 arrays of `Simple_Model.get_feature_map`, or a mapping from names
        to arrays of shape (1, H, W, C). `labels` maps names to the labels of their tiles; if it is
        a sequence, all arrays get the same. Raises what `proccess_each_feature_map` raises, and
        ValueError if a sequence does not have 26 arrays.
        """
        if not isinstance(feature_maps, Mapping):
            if len(feature_maps) != len(LAYERS):
                raise ValueError(
                    f"expected the {len(LAYERS)} arrays of get_feature_map, or a dict of arrays"
                )
            feature_maps = dict(zip(LAYERS, feature_maps, strict=True))
        saved = []
        with ThreadPoolExecutor(os.cpu_count()) as savers:  # they save while this thread draws
            for name, fmap in feature_maps.items():
                own = labels.get(name, ()) if isinstance(labels, Mapping) else labels
                page = self._draw(Layer(name, fmap, own))
                saved.append(savers.submit(save_png, page, self.output_dir, name))
        return [job.result() for job in saved]

    @style.context("default")
    def proccess_each_feature_map(
        self, square: int, fmap: Array, name: str | None = None, labels: Sequence = ()
    ) -> Path:
        """Draw the grid of one layer, save it as `<name>.png` and return its path.

        `fmap` is an array of shape (1, H, W, C). Its channel c is the tile in row c // square and
        column c % square. In the PNG, palette index 0 to 238 is a value's place on the scale;
        greater ones are frames, text and paper. Without a `name`, the layer is called
        conv_<layer_type>_<layer_num>. `labels` are C texts or numbers, one for each tile, in place
        of the numbers around the grid: the channels that were chosen, for example.

        Raises ValueError if the shape or the name is invalid, a value is not finite, the channels
        are more than square² or not as many as the labels; OSError if the page cannot be written.
        """
        if name is None:
            name = f"conv_{self.layer_type}_{self.layer_num}"
        layer = Layer(name, fmap, labels)  # its square is the least one with room for C tiles
        if square != int(square) or square < layer.square:
            raise ValueError(
                f"square={square!r}: expected a whole number of at least {layer.square}"
            )
        layer.square = int(square)
        return save_png(self._draw(layer), self.output_dir, name)

    def _draw(self, layer: Layer) -> Page:
        """Draw the page of a layer; the page's `info` is what the PNG will say of it."""
        scale = make_scale(self.scale, layer)
        zoom = find_zoom(layer, self.figsize)
        captions = [
            self.source,
            # A row's number is that of its first channel.
            "" if layer.labels else "channel = row number + column number",
            scale.words,
        ]
        blocks = [
            draw_text(layer.name, NAME_SIZE),
            draw_text(joined(self.values, layer.facts)),
            draw_grid(layer, draw_tiles(layer, scale, zoom)),
            *map(draw_text, filter(None, captions)),
        ]
        if scale.shared:  # a colourbar and its title
            blocks += [draw_text(self.values or ""), draw_colorbar(scale)]
        page = stack(blocks)
        page.putpalette(make_palette(self.cmap or scale.cmap))  # the bytes stay, the mode becomes P
        page.info = self._describe(layer, scale, zoom)
        return page

    def _describe(self, layer: Layer, scale: Scale, zoom: int) -> dict:
        """Say what the page shows, and which values the ends of its scale stand for."""
        ends = f"{scale.low:.9g} to {scale.high:.9g}" if scale.shared else "see Channel ranges"
        return {
            "Title": joined(layer.name, self.values, layer.facts),
            "Source": self.source,
            "Description": f"values: {self.values or 'not told'}\n"
            f"range: {layer.lowest.min():.9g} to {layer.highest.max():.9g}\n"
            f"scale: {scale.words}, {ends}\n"
            f"colormap: {self.cmap or scale.cmap}\n"
            f"tiles: {layer.square} in a row, {zoom}×{zoom} pixels per value\n"
            f"software: matplotlib {matplotlib.__version__}, numpy {np.__version__}",
            "Channel ranges": "\n".join(map("{:.9g} {:.9g}".format, layer.lowest, layer.highest)),
            "Labels": "\n".join(layer.labels),
        }


class Layer:
    """A feature map (H, W, C) to draw, with its name, its labels, and what its values are like."""

    def __init__(self, name: str, fmap: Array, labels: Sequence) -> None:
        if os.path.basename(f"{name}.png") != f"{name}.png":  # such as a/b
            raise ValueError(f"{name!r} cannot be the name of a file")
        shape = np.shape(fmap)
        if len(shape) != 4 or shape[0] != 1:
            raise ValueError(f"{name}: expected an array of shape (1, H, W, C), not {shape}")
        self.name = name
        self.fmap = np.asarray(fmap[0], np.float32)  # float64 would take twice as much
        if not np.isfinite(self.fmap).all():
            raise ValueError(f"{name}: some values are NaN or infinite")
        self.height, self.width, channels = self.fmap.shape
        self.labels = [str(label) for label in labels]
        if len(self.labels) not in (0, channels):
            raise ValueError(f"{name}: expected {channels} labels, not {len(self.labels)}")
        self.square = math.ceil(channels**0.5)  # how many tiles there are in a row
        self.lowest = self.fmap.min((0, 1))  # (C,)
        self.highest = self.fmap.max((0, 1))  # (C,)
        ranges = self.highest - self.lowest
        self.flat = ranges <= FLAT * ranges.max()  # (C,)
        noun = "map" if self.labels else "channel"  # a caller may label things of all kinds
        plural = "s" if channels > 1 else ""
        size = f"{channels} {noun}{plural} of {self.height}×{self.width}"
        self.facts = joined(size, f"{self.flat.sum()} flat" if self.flat.any() else "")


@dataclass
class Scale:
    """How values become levels: `low` is the first level and `high` the last.

    They are numbers if all channels share the scale, else arrays with a number for each channel.
    """

    low: Array | float
    high: Array | float
    shared: bool
    words: str
    cmap: str  # unless the user names another

    def levels(self, fmap: Array) -> Array:
        """Turn values (H, W, C) into levels; what lies beyond the ends gets the level there."""
        # The tiny number is for a channel whose ends are equal.
        shares = (fmap - self.low) / (self.high - self.low + 1e-30)
        return np.rint(shares.clip(0, 1) * (LEVELS - 1)).astype(np.uint8)


def check_scale(choice: ScaleChoice) -> None:
    is_named = isinstance(choice, str) and choice in SCALES
    has_two_ends = np.shape(choice) == (2,) and 0 < choice[1] - choice[0] < math.inf
    if not (is_named or has_two_ends):
        raise ValueError(f"scale={choice!r}: choose channel, layer or two ends, such as (0, 6)")


def make_scale(choice: ScaleChoice, layer: Layer) -> Scale:
    """Make the scale that `Visualize.scale` asks for, from the values of a layer."""
    if not isinstance(choice, str):
        return shared_scale(layer, *map(float, choice))
    if choice == "layer":
        end = symmetric_end(layer)
        return shared_scale(layer, -end, end)
    return Scale(
        layer.lowest,
        layer.highest,
        shared=False,
        words=joined(SCALES["channel"], "crossed box = flat channel" if layer.flat.any() else ""),
        cmap="gray",
    )


def shared_scale(layer: Layer, low: float, high: float) -> Scale:
    """Make a scale from `low` to `high` for all channels of a layer."""
    beyond = np.mean((layer.fmap < low) | (layer.fmap > high))
    return Scale(
        low,
        high,
        shared=True,
        words=joined(SCALES["layer"], f"{beyond:.2%} beyond its ends" if beyond else ""),
        cmap="coolwarm" if low == -high else "viridis",
    )


def symmetric_end(layer: Layer) -> float:
    """Find the 99th percentile of the magnitudes.

    Flat channels are left out, unless all are flat: a large constant would widen the scale until
    the others look alike.
    """
    varying = layer.fmap[..., ~layer.flat]
    magnitudes = np.abs(varying if varying.size else layer.fmap)
    # If nearly all values are 0, so is the percentile; if all are, so is the maximum.
    return float(np.quantile(magnitudes, 0.99) or magnitudes.max() or 1)


def find_zoom(layer: Layer, figsize: Sequence[float]) -> int:
    """Find how many pixels wide and high a value can be.

    A grid has no more rows than columns, so what limits its width limits its height, too. With
    labels, both may be larger.
    """
    room = min(figsize) * DOTS_PER_INCH - 2 * MARGIN - ROW_NUMBERS_WIDTH
    tile = room // layer.square - TILE_GAP
    least = math.ceil(LABELLED_WIDTH / layer.width) if layer.labels else 1
    return max(least, int(tile // max(layer.height, layer.width)))


def draw_tiles(layer: Layer, scale: Scale, zoom: int) -> Array:
    """Draw a tile for each channel, framed, with room for its label: (C, height, width)."""
    levels = scale.levels(layer.fmap).transpose(2, 0, 1)  # (C, H, W)
    tiles = levels.repeat(zoom, axis=1).repeat(zoom, axis=2)
    if not scale.shared:
        diagonal = np.eye(*tiles.shape[1:], dtype=bool)
        tiles[layer.flat] = np.where(diagonal | np.fliplr(diagonal), INK, PAPER)
    framed = np.pad(tiles, ((0, 0), (1, 1), (1, 1)), constant_values=FRAME)
    above = LINE_HEIGHT if layer.labels else 0
    # A line of paper below a tile, and one to its right, separate it from the next.
    return np.pad(framed, ((0, 0), (above, 1), (0, 1)), constant_values=PAPER)


def draw_grid(layer: Layer, tiles: Array) -> Page:
    """Put tiles (C, height, width) side by side, with their labels or with numbers around them."""
    channels, height, width = tiles.shape
    spare = -channels % layer.square
    places = np.pad(tiles, ((0, spare), (0, 0), (0, 0)), constant_values=PAPER)
    rows = places.reshape(-1, layer.square, height, width)
    lines = rows.swapaxes(1, 2)  # (rows, height, columns, width), the order of pixels on a page
    grid = Image.fromarray(lines.reshape(-1, layer.square * width))
    if not layer.labels:
        return with_numbers(grid, height, width)
    for place, label in enumerate(layer.labels):
        row, column = divmod(place, layer.square)
        text = draw_text(label, longest=width // LETTER_WIDTH)
        grid.paste(text, (column * width, row * height))
    return grid


def with_numbers(grid: Page, tile_height: int, tile_width: int) -> Page:
    """Number the columns, and the rows by their first tile; leave out numbers that would touch."""
    block = Image.new("L", (ROW_NUMBERS_WIDTH + grid.width, LINE_HEIGHT + grid.height), PAPER)
    block.paste(grid, (ROW_NUMBERS_WIDTH, LINE_HEIGHT))
    columns = grid.width // tile_width
    for column in range(0, columns, math.ceil(COLUMN_NUMBER_WIDTH / tile_width)):
        number = draw_text(column)
        left = ROW_NUMBERS_WIDTH + column * tile_width + (tile_width - number.width) // 2
        block.paste(number, (left, 0))
    for row in range(0, grid.height // tile_height, math.ceil(LINE_HEIGHT / tile_height)):
        number = draw_text(row * columns)
        top = LINE_HEIGHT + row * tile_height + (tile_height - LINE_HEIGHT) // 2
        block.paste(number, (ROW_NUMBERS_WIDTH - NUMBER_GAP - number.width, top))
    return block


def draw_colorbar(scale: Scale) -> Page:
    """Draw all levels in a row, over the values of both ends and the middle."""
    levels = np.arange(LEVELS, dtype=np.uint8).repeat(2)
    block = Image.new("L", (levels.size, 2 * LINE_HEIGHT), PAPER)
    block.paste(Image.fromarray(np.tile(levels, (LINE_HEIGHT, 1))))
    for share in (0, 0.5, 1):
        value = scale.low + share * (scale.high - scale.low)
        number = draw_text(f"{value:.3g}".replace("-", "−"))
        block.paste(number, (int(share * (block.width - number.width)), LINE_HEIGHT))
    return block


def stack(blocks: Sequence[Page]) -> Page:
    """Put blocks below each other on a page that is just large enough."""
    width = max(block.width for block in blocks)
    height = sum(block.height for block in blocks)
    page = Image.new("L", (width, height), PAPER)
    top = 0
    for block in blocks:
        page.paste(block, (0, top))
        top += block.height
    return ImageOps.expand(page, MARGIN, PAPER)


# Drawing text takes longer than all the rest together, and most texts recur from page to page.
@functools.lru_cache(maxsize=1024)
def draw_text(text: object, size: int = TEXT_SIZE, longest: int = LONGEST_LINE) -> Page:
    """Draw a line in palette indices; leave out the middle of a text that is too long."""
    text = printable(text)
    if len(text) > longest:
        half = (longest - 1) // 2
        text = f"{text[:half]}…{text[-half:]}"
    width = size * (len(text) + 1) / 72  # in inches; hardly any letter is wider than its size
    height = LINE_HEIGHT / DOTS_PER_INCH * size / TEXT_SIZE
    figure = Figure((width, height), DOTS_PER_INCH)  # its white is PAPER
    # In grey INK on white PAPER, the edges of letters get the indices between. (matplotlib takes
    # "0.937" for a grey.) 0.3 is the height of the baseline.
    figure.text(0, 0.3, text, size=size, color=str(INK / 255), parse_math=False)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    indices = np.asarray(canvas.buffer_rgba())[:, :, 0]  # red; green and blue are the same
    inked = np.flatnonzero(indices.min(axis=0) < PAPER)
    return Image.fromarray(indices[:, : inked.max(initial=0) + 1])


def make_palette(cmap: str) -> bytes:
    """Give the RGB bytes of a colormap's levels and of the greys."""
    colormap = matplotlib.colormaps.get_cmap(cmap).resampled(LEVELS)
    levels = colormap(range(LEVELS))[:, :3]  # (239, 3), without alpha, from 0 to 1
    greys = np.linspace([0, 0, 0], 1, GREYS)  # (17, 3)
    return np.rint(255 * np.vstack([levels, greys])).astype(np.uint8).tobytes()


def printable(text: object) -> str:
    """Replace control characters, which a terminal would obey and a page cannot show."""
    return "".join(c if c.isprintable() else "\ufffd" for c in str(text))


def joined(*parts: object) -> str:
    """Join the parts that are not empty, with dots between them."""
    return " · ".join(str(part) for part in parts if part)


def save_png(picture: Page, folder: str | Path, name: str) -> Path:
    """Save a picture and its `info`; until the file is whole, an older one stays as it was."""
    path = Path(folder, f"{name}.png")
    metadata = PngInfo()
    for key, value in picture.info.items():
        if value:
            # A file name that is not UTF-8 has surrogates, which no PNG can hold.
            metadata.add_text(key, str(value).encode(errors="replace").decode())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # In a temporary folder: a temporary file would stay readable by its owner only (mode 0600).
        with TemporaryDirectory(dir=path.parent) as beside:
            unfinished = Path(beside, path.name)
            picture.save(unfinished, pnginfo=metadata, compress_level=1)
            unfinished.replace(path)
    except OSError as error:
        raise OSError(f"cannot write {str(path)!r}: {error.strerror or error}") from error
    return path


EPILOG = """\
With --scale layer, the scale goes from 0 to 6 after ReLU6, in viridis. Before ReLU6, it is in
coolwarm, symmetric about zero, and ends at the 99th percentile of the magnitudes.

example:      python Visualize.py --image_path cat.jpg dog.jpg --after relu --scale layer
exit status:  0 all drawn, 2 wrong picture or option, 1 anything else (no connection), 130 Ctrl-C
"""


class OneLineParser(argparse.ArgumentParser):
    """An ArgumentParser that answers a mistake with one line that says what to type."""

    def error(self, message: str) -> None:
        print_error(f"{message}; type: python Visualize.py --image_path PICTURE")
        sys.exit(2)


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = OneLineParser(
        description=__doc__, epilog=EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    # Four help texts that are too long for the lines below.
    pictures = "one or more pictures, or patterns such as cats/*.jpg; several get a folder each"
    after = "take the values after each convolution (default), its batch normalisation or its ReLU6"
    scale = "draw each channel over its own range (default), or a layer's channels on one scale"
    weights = "imagenet (default), none (untrained), or a file for this network without its head"
    add = parser.add_argument
    add("--image_path", nargs="+", action="extend", required=True, metavar="PICTURE", help=pictures)
    add("--output_dir", default="Images", metavar="FOLDER", help="where the pages go (Images)")
    add("--after", choices=VALUES, default="conv", help=after)
    add("--scale", choices=SCALES, default="channel", help=scale)
    add("--cmap", help="a matplotlib colormap (gray, or see below)")
    add("--weights", default="imagenet", help=weights)
    add("--quiet", action="store_true", help="print only errors")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the command, with progress on stderr and the result on stdout; return the exit status."""
    args = parse_arguments(argv)
    try:
        folders = plan_folders(args.image_path, Path(args.output_dir))
        refuse_overwriting(folders)
        # Progress goes to stderr, also that of Keras's download.
        with contextlib.redirect_stdout(io.StringIO() if args.quiet else sys.stderr):
            try:
                drawn = draw_pictures(folders, args)
            finally:
                print_progress("")  # removes the last line of progress
    except KeyboardInterrupt:
        return 130
    except (ImportError, OSError, ValueError) as error:
        # Without the weights to download, the command can still draw an untrained network.
        hint = ", or use --weights none" if isinstance(error, ConnectionError) else ""
        print_error(f"{error}{hint}")
        # Only the file of --weights can be "not found" here: draw_pictures has caught pictures.
        return 2 if isinstance(error, ValueError | FileNotFoundError) else 1
    if drawn and not args.quiet:
        print_result(
            f"{drawn} of {len(folders)} pictures drawn: 26 pages and {INPUT_NAME}.png each"
        )
    return 0 if drawn == len(folders) else 2


def print_error(error: object) -> None:
    print(f"Visualize.py: error: {printable(error)}", file=sys.stderr)


def print_progress(line: str) -> None:
    """Print a line to stdout, which `main` sends to stderr.

    In a terminal, it takes the place of the line before; an empty one only removes that.
    """
    if sys.stdout.isatty():
        print(f"\r\x1b[K{line}", end="", flush=True)
    elif line:
        print(line)


def print_result(line: str) -> None:
    """Print the last line. If nobody can read it, the run has gone well all the same."""
    try:
        print(line, flush=True)
    except OSError:  # the disk is full, or nobody reads the pipe
        with contextlib.suppress(OSError):
            sys.stdout.close()  # or Python would try again when it exits


def plan_folders(patterns: Sequence[str], output_dir: Path) -> dict[str, Path]:
    """Choose the folder for the pages of each picture.

    One picture gets `output_dir` itself. Several get folders in it, arranged as the pictures are:
    cats/1.jpg and dogs/1.jpg get `output_dir`/cats/1 and `output_dir`/dogs/1.
    """
    without_suffix = {}
    for pattern in patterns:
        # Some shells leave *.jpg to the program. What matches nothing is taken for a path.
        matches = [pattern] if os.path.exists(pattern) else sorted(glob.glob(pattern))
        for picture in matches or [pattern]:
            without_suffix[picture] = Path(os.path.abspath(picture)).with_suffix("")
    if len(without_suffix) == 1:
        return dict.fromkeys(without_suffix, output_dir)
    common = os.path.commonpath([path.parent for path in without_suffix.values()])
    folders = {}
    for picture, path in without_suffix.items():
        folder = output_dir / path.relative_to(common)
        if folder in folders.values():
            raise ValueError(f"{picture!r} and another would share {str(folder)!r}: rename one")
        folders[picture] = folder
    return folders


def refuse_overwriting(folders: Mapping[str, Path]) -> None:
    """Raise ValueError if one of the pictures, or somebody's `network_input.png`, would be lost.

    Pages replace files of the same name without asking, because nobody else has a conv_dw_1.png.
    """
    pictures = {os.path.realpath(picture) for picture in folders}
    for folder in folders.values():
        for name in (*LAYERS, INPUT_NAME):
            path = folder / f"{name}.png"
            foreign = name == INPUT_NAME and path.exists() and is_foreign(path)
            if foreign or os.path.realpath(path) in pictures:
                raise ValueError(f"{str(path)!r} would be lost: choose another --output_dir")


def is_foreign(path: Path) -> bool:
    """Say whether a file lacks the title that `draw_pictures` gives to its own."""
    try:
        with Image.open(path) as picture:
            return picture.info.get("Title") != INPUT_NAME
    except Exception:  # it is no picture, or too large for one
        return True


def draw_pictures(folders: Mapping[str, Path], args: argparse.Namespace) -> int:
    """Draw each picture's grids, and return how many pictures could be read."""
    if args.after == "relu" and args.scale == "layer":
        args.scale = (0, 6)  # the range of ReLU6, rather than symmetric about zero
    grids = Visualize(scale=args.scale, cmap=args.cmap)
    model = None
    drawn = 0
    for number, (path, folder) in enumerate(folders.items(), start=1):
        try:
            picture = read_picture(path)
        except (OSError, ValueError) as error:
            print_progress("")
            print_error(error)
            continue
        grids.output_dir = folder
        grids.source = os.path.basename(path)
        if model is None:  # not before, because it takes seconds
            print_progress("Loading MobileNet ...")
            load_tensorflow()
            model = Simple_Model(None if args.weights == "none" else args.weights, args.after)
            grids.values = model.values
        picture.info = {"Title": INPUT_NAME, "Source": grids.source}
        save_png(picture, folder, INPUT_NAME)
        print_progress(f"Drawing {path!r} ({number} of {len(folders)}) into {str(folder)!r} ...")
        # The model reads the picture once more, but it is upright, RGB and 224×224 already.
        grids.show_each_feature_map(model.get_feature_map(picture))
        drawn += 1
    return drawn


def load_tensorflow() -> None:
    """Load TensorFlow; hide what its native code logs on stderr, unless loading fails."""
    stderr = os.dup(2)
    with TemporaryFile() as messages:
        os.dup2(messages.fileno(), 2)
        try:
            import keras

            keras.ops.zeros(1)  # the first operation looks for devices, and logs that, too
        except Exception as error:
            messages.seek(0)
            os.write(stderr, messages.read())
            raise ImportError(
                f"cannot load TensorFlow ({error}): run 'pip install -r requirements.txt' again"
            ) from error
        finally:
            os.dup2(stderr, 2)
            os.close(stderr)


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # what libraries have to say to programmers
    os.environ["KERAS_BACKEND"] = "tensorflow"  # the one in requirements.txt
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # a GPU takes longer to start than it saves
    # TensorFlow makes a million objects that stay. Garbage collection need not look at them often.
    gc.set_threshold(10_000)
    status = main()
    gc.freeze()  # nor when Python exits
    sys.exit(status)
