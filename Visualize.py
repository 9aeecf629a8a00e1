"""Draw MobileNet's feature maps: one page per layer, with every channel on it.

    values -> levels (palette indices) -> a tile for each channel -> a page of tiles -> a PNG file

matplotlib gives the colours and a font. NumPy places the tiles: the 26 pages of a picture take 3.6
seconds of CPU. With a matplotlib Figure for each, they take 10.7.
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
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib
import numpy as np
from numpy import ndarray as Array
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from Model import LAYERS, STEPS, Simple_Model, read_picture

# A page is an array of palette indices:
#   0 to 238    the levels, which get the colours of a colormap
#   239 to 255  greys from black to white, for frames and for letters with soft edges
LEVELS = 239  # an odd number, so that a scale from -1 to 1 has a level for 0
BLACK = LEVELS
GREY = BLACK + 10
WHITE = 255

# Sizes in pixels
PIXELS_PER_INCH = 144
MARGIN = 17  # around a page
TITLE_SIZE = 46  # of the font
TEXT_SIZE = 28  # of the font
FRAME_WIDTH = 1  # around a tile
TILE_GAP = 2  # between frames, at least


class Visualize:  # other scripts use it: keep the names of methods, arguments and attributes
    """Pages of feature maps, saved as one PNG per layer."""

    def __init__(
        self,
        output_dir: str | Path = "Images",
        scale: str | tuple[float, float] = "channel",
        cmap: str | None = None,
        values: str = "values",
        source: str = "",
        figsize: tuple[float, float] = (10, 10),
        layer_num: int = 1,
        layer_type: str = "dw",
    ) -> None:
        """Choose where the pages go, how they look and what they say.

        `scale`: from which value to which the colormap goes.
            "channel": in each channel, from its lowest to its highest.
            "layer": m is the 99th percentile of the magnitudes; from -m to m, or from 0 to m if no
                value is negative. Constant channels are left out of both.
            (low, high): from low to high.
        `cmap`: the name of a matplotlib colormap. None: the scale chooses one.
        `values`: what the values are, in words, such as "convolution output".
        `source`: the picture's name.
        `figsize`: the room for all tiles together, width and height in inches (144 pixels each).
        `layer_num`, `layer_type`: the layer of an array without a name: conv_<type>_<num>.
        """
        self.output_dir = output_dir
        self.scale = scale
        self.cmap = cmap
        self.values = values
        self.source = source
        self.figsize = figsize
        self.layer_num = layer_num
        self.layer_type = layer_type

    def show_each_feature_map(
        self, feature_maps: Mapping[str, Array] | Sequence[Array], labels: Sequence = ()
    ) -> list[Path]:
        """Draw and save many layers; return the paths of their pages, in the same order.

        `feature_maps`: arrays by name, as `get_feature_map` gives them. A list of arrays gets the
            names in LAYERS from conv_<layer_type>_<layer_num> on; ValueError if it is too long.
        `labels`: for each page, if all layers have as many channels as there are labels.
        """
        if not isinstance(feature_maps, Mapping):
            first = LAYERS.index(f"conv_{self.layer_type}_{self.layer_num}")
            names = LAYERS[first:]
            if len(feature_maps) > len(names):
                raise ValueError(f"{len(feature_maps)} arrays for {len(names)} layers")
            feature_maps = dict(zip(names, feature_maps))

        def draw(name: str, fmap: Array) -> Path:
            square = math.ceil(math.sqrt(fmap.shape[-1]))  # the smallest that holds all channels
            return self.proccess_each_feature_map(square, fmap, name, labels)

        with ThreadPoolExecutor() as threads:  # compresses several PNGs at the same time
            return list(threads.map(draw, feature_maps.keys(), feature_maps.values()))

    def proccess_each_feature_map(
        self, square: int, fmap: Array, name: str | None = None, labels: Sequence = ()
    ) -> Path:
        """Draw one layer with `square` tiles in a row, save `<name>.png` and return its path.

        `fmap`: an array of shape (1, H, W, C). Channel c is in row c // square, column c % square.
        `name`: of the layer. By default, conv_<layer_type>_<layer_num>.
        `labels`: C texts or numbers to stand above the tiles, in place of the channels' numbers.
        Raises ValueError if the shape or the number of labels is wrong or a value is not finite.
        """
        name = name or f"conv_{self.layer_type}_{self.layer_num}"
        labels = np.asarray(labels)  # given as a list or as a tensor
        maps = get_channels(name, fmap)
        scale = Scale(self.scale, maps)
        zoom = find_zoom(maps, square, self.figsize)
        tiles = draw_tiles(scale.levels(), scale.crossed, zoom)
        if labels.size:
            kind = "tile"
            grid = draw_labelled(tiles, square, labels)
        else:
            kind = "channel"
            grid = draw_numbered(tiles, square)
        height, width, channels = maps.shape
        plural = "s" if channels > 1 else ""
        blocks = [
            draw_text(name, TITLE_SIZE),
            draw_text(f"{self.values} · {channels} {kind}{plural} of {height}×{width}"),
            draw_text(scale.describe()),
            draw_text(self.source),
            draw_text(" "),
            grid,
        ]
        if scale.shared:
            blocks += [draw_text(" "), draw_colorbar(scale)]
        page = apply_colormap(stack(blocks), self.cmap or scale.default_cmap())
        return save_png(page, Path(self.output_dir, f"{name}.png"), self.source)


def get_channels(name: str, fmap: Array) -> Array:
    """Return the channels of a layer: (H, W, C). Raise ValueError if they cannot be drawn."""
    if fmap.ndim != 4 or len(fmap) != 1:
        raise ValueError(f"{name}: expected an array of shape (1, H, W, C), not {fmap.shape}")
    maps = np.asarray(fmap[0], np.float32)
    if not np.isfinite(maps).all():
        raise ValueError(f"{name}: some values are NaN or infinite")
    return maps


class Scale:
    """Turns the values of a layer into levels: `low` into the first one, `high` into the last.

    If `shared`, both are numbers for all channels, else arrays with a number for each: (C,).
    `crossed` says which channels are to be crossed out: (C,).
    """

    def __init__(self, choice: str | tuple[float, float], maps: Array) -> None:
        self.maps = maps
        self.shared = choice != "channel"
        lowest = maps.min(axis=(0, 1))  # (C,)
        highest = maps.max(axis=(0, 1))
        ranges = highest - lowest
        # A channel is flat if its range is at most a millionth of the widest one: rounding errors.
        flat = ranges <= 1e-6 * ranges.max()
        self.crossed = flat & (not self.shared)
        if choice == "channel":
            self.low = lowest
            self.high = np.where(flat, lowest + 1, highest)  # + 1: no division by 0
        elif choice == "layer":
            varied = maps if flat.all() else maps[..., ~flat]
            magnitudes = np.abs(varied)
            high = np.quantile(magnitudes, 0.99)
            if high == 0:  # 99 % of the values are 0, or even all
                high = magnitudes.max() or 1
            self.high = float(high)
            self.low = -self.high if varied.min() < 0 else 0.0
        else:
            self.low, self.high = choice

    def levels(self) -> Array:
        """Turn the values into levels; those beyond the ends get the first or the last."""
        shares = (self.maps - self.low) / (self.high - self.low)  # 0 at the low end, 1 at the high
        return np.rint(shares.clip(0, 1) * (LEVELS - 1)).astype(np.uint8)

    def describe(self) -> str:
        """Say what the scale is, and how much it leaves out."""
        if not self.shared:
            count = self.crossed.sum()
            crossed = f" · {count} flat: crossed out" if count else ""
            return f"each tile over its own range{crossed}"
        beyond = 100 * np.mean((self.maps < self.low) | (self.maps > self.high))
        ends = f"from {self.low:.4g} to {self.high:.4g}"
        return f"all tiles on one scale {ends} · {beyond:.3g}% of the values beyond"

    def default_cmap(self) -> str:
        """Choose a colormap for a page that was not given one."""
        if not self.shared:
            return "gray"
        return "coolwarm" if self.low == -self.high else "viridis"


def find_zoom(maps: Array, columns: int, figsize: tuple[float, float]) -> int:
    """Find the largest zoom (pixels for a value, each way) with which all tiles fit; at least 1."""
    height, width, channels = maps.shape
    rows = math.ceil(channels / columns)
    around = 2 * FRAME_WIDTH + TILE_GAP
    zoom_x = (figsize[0] * PIXELS_PER_INCH / columns - around) / width
    zoom_y = (figsize[1] * PIXELS_PER_INCH / rows - around) / height
    return max(1, int(min(zoom_x, zoom_y)))


def draw_tiles(levels: Array, crossed: Array, zoom: int) -> Array:
    """Draw each channel in a frame, or a cross instead of it: (C, height, width)."""
    tiles = levels.transpose(2, 0, 1).repeat(zoom, axis=2).repeat(zoom, axis=1)
    diagonal = np.eye(*tiles.shape[1:], dtype=bool)
    cross = diagonal | np.fliplr(diagonal)
    tiles[crossed] = np.where(cross, GREY, WHITE)
    frame = (FRAME_WIDTH, FRAME_WIDTH)
    return np.pad(tiles, ((0, 0), frame, frame), constant_values=GREY)


def draw_numbered(tiles: Array, columns: int) -> Array:
    """Put the tiles in rows, with numbers above and beside them.

         0   1   2
    0+  [ ] [ ] [ ]
    3+  [ ] [ ]         channel 4 is in row 3+, below 1
    """
    space = "\N{HAIR SPACE}"  # keeps the numbers apart
    numbers = [draw_text(f"{space}{column}{space}") for column in range(columns)]
    rows = [[draw_text(" "), *numbers]]
    for first in range(0, len(tiles), columns):
        rows.append([draw_text(f"{first}+ "), *tiles[first : first + columns]])
    return draw_table(rows)


def draw_labelled(tiles: Array, columns: int, labels: Array) -> Array:
    """Put the tiles in rows, each below its label."""
    if len(labels) != len(tiles):
        raise ValueError(f"expected {len(tiles)} labels, not {len(labels)}")
    texts = [draw_text(f" {label!s} ") for label in labels]
    no_number = draw_text("")
    rows = []
    for first in range(0, len(tiles), columns):
        rows.append([no_number, *texts[first : first + columns]])
        rows.append([no_number, *tiles[first : first + columns]])
    return draw_table(rows)


def draw_table(rows: Sequence[Sequence[Array]]) -> Array:
    """Put each block in the middle of a cell. All columns are equally wide, except the first."""
    first_width = max(row[0].shape[1] for row in rows)
    other_width = TILE_GAP + max(block.shape[1] for row in rows for block in row[1:])
    widths = [first_width] + [other_width] * (len(rows[0]) - 1)
    heights = [TILE_GAP + max(map(len, row)) for row in rows]
    table = np.full((sum(heights), sum(widths)), WHITE, np.uint8)
    top = 0
    for row, height in zip(rows, heights):
        left = 0
        for block, width in zip(row, widths):
            block_height, block_width = block.shape
            y = top + (height - block_height) // 2
            x = left + (width - block_width) // 2
            table[y : y + block_height, x : x + block_width] = block
            left += width
        top += height
    return table


def draw_colorbar(scale: Scale) -> Array:
    """Draw all levels in a row, between the values of the two ends."""
    low = draw_text(f"{scale.low:.4g} ")
    high = draw_text(f" {scale.high:.4g}")
    line = np.arange(LEVELS, dtype=np.uint8).repeat(2)  # two pixels for each level
    bar = np.tile(line, (len(low), 1))
    return np.hstack([low, bar, high])


@functools.lru_cache(1024)  # most texts recur from page to page
def draw_text(text: str, size: int = TEXT_SIZE) -> Array:
    """Draw a line of text in matplotlib's font."""
    font = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)
    ascent, descent = font.getmetrics()
    width = math.ceil(font.getlength(text))
    line = Image.new("L", (width, ascent + descent), "white")
    ImageDraw.Draw(line).text((0, 0), text, "black", font)  # in greys, from 0 to 255
    return np.interp(line, [0, 255], [BLACK, WHITE]).round().astype(np.uint8)


def stack(blocks: Sequence[Array]) -> Array:
    """Put blocks one below another, on a page with margins."""
    height = sum(map(len, blocks))
    width = max(block.shape[1] for block in blocks)
    page = np.full((height + 2 * MARGIN, width + 2 * MARGIN), WHITE, np.uint8)
    top = MARGIN
    for block in blocks:
        bottom = top + len(block)
        page[top:bottom, MARGIN : MARGIN + block.shape[1]] = block
        top = bottom
    return page


def apply_colormap(page: Array, cmap: str) -> Image.Image:
    """Make an image of a page, in which levels have a colormap's colours."""
    colormap = matplotlib.colormaps.get_cmap(cmap).resampled(LEVELS)
    colours = colormap(range(LEVELS))[:, :3]  # RGB from 0 to 1
    greys = np.linspace([0, 0, 0], [1, 1, 1], 256 - LEVELS)  # black to white
    palette = np.rint(255 * np.vstack([colours, greys])).astype(np.uint8)  # (256, 3)
    image = Image.fromarray(page)
    image.putpalette(palette.tobytes())
    return image


def save_png(picture: Image.Image, path: Path, source: str) -> Path:
    """Save a picture, with its source in the PNG's metadata; return the path."""
    if path.exists():  # replace only what was saved here, with a source
        with Image.open(path) as older:
            if "Source" not in older.info:
                raise OSError(f"{str(path)!r} was not drawn here: choose another folder")
    metadata = PngInfo()
    # The name of a file may have bytes that are not UTF-8: in a text, they become question marks.
    metadata.add_text("Source", source.encode(errors="replace").decode())
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    picture.save(unfinished, "PNG", pnginfo=metadata, compress_level=1)  # fast
    unfinished.replace(path)
    return path


def main(argv: list[str] | None = None) -> int:
    """Run the command; return the exit status."""
    args = parse_arguments(argv)
    try:
        folders = plan_folders(args.image_path, Path(os.path.expanduser(args.output_dir)))
        # Messages, and those of Keras's download, go to standard error; with --quiet, nowhere.
        with contextlib.redirect_stdout(io.StringIO() if args.quiet else sys.stderr):
            complete = draw_pictures(folders, args)
    except KeyboardInterrupt:
        return 130
    except (ImportError, OSError, ValueError) as error:
        print(f"Visualize.py: error: {error}", file=sys.stderr)
        return 2
    return 0 if complete else 2


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Draw MobileNet's feature maps, a page per layer.")
    add = parser.add_argument
    add(
        "--image_path",
        nargs="+",
        action="extend",
        required=True,
        help="one or more pictures, or patterns such as cats/*.jpg; several get a folder each",
    )
    add("--output_dir", default="Images", help="where the pages go (Images)")
    add("--layers", nargs="+", default=LAYERS, help="such as conv_pw_6 (by default, all but conv1)")
    add("--after", choices=STEPS, default="conv", help="take the values after this step (conv)")
    add(
        "--scale",
        choices=("channel", "layer"),
        default="channel",
        help="a scale for each channel (default), or for each layer (after relu: from 0 to 6)",
    )
    add("--cmap", choices=matplotlib.colormaps, metavar="NAME", help="a matplotlib colormap")
    add("--weights", default="imagenet", help="imagenet (default), none (untrained) or a file")
    add("--quiet", action="store_true", help="print only errors")
    return parser.parse_args(argv)


def plan_folders(patterns: Sequence[str], output_dir: Path) -> dict[Path, str]:
    """Choose a folder for the pages of each picture; return {folder: path of the picture}.

    A single picture gets `output_dir` itself. Several get subfolders that mirror their own ones:
    my/cats/1.jpg and my/dogs/1.jpg get cats/1 and dogs/1.
    """
    paths = set()
    for pattern in patterns:
        if os.path.exists(pattern):  # even if it has brackets, which glob would interpret
            paths.add(pattern)
        else:
            paths.update(glob.glob(pattern, recursive=True) or [pattern])
    if len(paths) == 1:
        return {output_dir: paths.pop()}
    parents = [os.path.dirname(os.path.abspath(path)) for path in paths]  # /my/cats, /my/dogs
    common = os.path.commonpath(parents)  # /my
    folders = {}
    for path in sorted(paths):
        folder = output_dir / Path(os.path.relpath(path, common)).with_suffix("")  # .../cats/1
        if folder in folders:
            raise ValueError(f"{path!r} and {folders[folder]!r} would share {str(folder)!r}")
        folders[folder] = path
    return folders


def draw_pictures(folders: Mapping[Path, str], args: argparse.Namespace) -> bool:
    """Draw the pages of each picture into its folder; return whether all could be read."""
    pictures = {}
    for folder, path in folders.items():
        try:
            pictures[folder] = read_picture(path)
        except OSError as error:
            print(f"Visualize.py: error: {error}", file=sys.stderr)
    if not pictures:
        return False
    print("Loading MobileNet ...")
    load_tensorflow()
    weights = None if args.weights == "none" else args.weights
    model = Simple_Model(weights, args.after, args.layers)
    scale = args.scale
    if scale == "layer" and args.after == "relu":
        scale = (0, 6)  # all that ReLU6 can give, so that layers can be compared
    for folder, picture in pictures.items():
        path = folders[folder]
        print(f"Drawing {path!r} into {str(folder)!r} ...")
        source = os.path.basename(path)
        save_png(picture, folder / "network_input.png", source)
        pages = Visualize(folder, scale, args.cmap, values=model.values, source=source)
        pages.show_each_feature_map(model.compute(picture))
    print(f"{len(pictures)} of {len(folders)} pictures drawn")
    return len(pictures) == len(folders)


def load_tensorflow() -> None:
    """Import Keras, but hide what TensorFlow's native code logs to descriptor 2."""
    saved = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)  # descriptor 2 leads nowhere
    try:
        import keras

        keras.ops.zeros(1)  # a first operation, because it logs as well
    finally:
        os.dup2(saved, 2)
        os.close(saved)


if __name__ == "__main__":
    os.environ["KERAS_BACKEND"] = "tensorflow"  # for Keras, which is imported later
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # no GPU: the CPU takes 60 ms a picture
    gc.disable()  # a search for garbage among TensorFlow's million objects takes half a second
    status = main()
    gc.freeze()  # keeps these objects out of the last search, at the exit
    sys.exit(status)
