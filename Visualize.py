"""Draw MobileNet's feature maps: one page per layer, with every channel on it.

Values become levels, levels become tiles, tiles stand in a grid on a page, and the page is saved as
a PNG. matplotlib gives the colours and the letters. NumPy places the tiles: with one matplotlib
Figure per page, a picture took 10.7 seconds of CPU time and not 3.6, and the code was as long. With
one Axes per channel, it takes about 100.
"""

from __future__ import annotations

import argparse
import atexit
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
from pathlib import Path

import matplotlib
import numpy as np
from numpy import ndarray as Array
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from Model import LAYERS, STEPS, Simple_Model, read_picture

# A page is an array of palette indices: 0 to 238 are the levels, coloured by a colormap, and 239 to
# 255 are greys from black to white, for paper, frames and letters with their soft edges.
LEVELS = 239  # an odd number, so that 0 has a level of its own on a scale from -1 to 1
BLACK = 239
GREY = 249
WHITE = 255

# Sizes are in pixels.
DOTS_PER_INCH = 144
MARGIN = 17  # around a page
TITLE_SIZE = 46  # of letters
TEXT_SIZE = 28
TEXT_GAP = 8  # between the numbers or labels of two tiles
FRAME_WIDTH = 1
TILE_GAP = 2


class Visualize:
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

        `scale`: "channel" (each channel has its own scale, from its lowest value to its highest),
        "layer" (one scale for all channels) or the two ends of one, such as (0, 6). That of a layer
        goes from -m to m, or from 0 to m if no value is negative; m is the 99th percentile of the
        magnitudes.
        `cmap`: a matplotlib colormap; if None, gray for "channel", coolwarm for a scale from -m to
        m, and viridis for others.
        `values`: what the numbers are, in words, such as `Simple_Model.values`.
        `source`: the picture's name.
        `figsize`: all tiles fit into its smaller side, in inches of 144 pixels. A value is a square
        of as many pixels as that allows, but at least one.
        `layer_type`, `layer_num`: the layer that maps without names begin with.
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

        `feature_maps` are arrays by name, as `get_feature_map` gives them. A list without names is
        counted in network order from conv_<layer_type>_<layer_num> on; ValueError if it has more
        arrays than layers follow. `labels` as in `proccess_each_feature_map`, which draws each.
        """
        if not isinstance(feature_maps, Mapping):
            first = LAYERS.index(f"conv_{self.layer_type}_{self.layer_num}")
            names = LAYERS[first:]
            if len(feature_maps) > len(names):
                raise ValueError(f"{len(feature_maps)} arrays for {len(names)} layers")
            feature_maps = dict(zip(names, feature_maps))

        def draw(name: str) -> Path:
            fmap = feature_maps[name]
            square = math.ceil(math.sqrt(fmap.shape[-1]))  # the smallest that holds all channels
            return self.proccess_each_feature_map(square, fmap, name, labels)

        with ThreadPoolExecutor() as threads:
            return list(threads.map(draw, feature_maps))

    def proccess_each_feature_map(
        self, square: int, fmap: Array, name: str | None = None, labels: Sequence = ()
    ) -> Path:
        """Draw one layer with `square` tiles in a row, save `<name>.png` and return its path.

        `fmap` is an array of shape (1, H, W, C). Its channel c is the tile in row c // square and
        column c % square. Without a `name`, the layer is called conv_<layer_type>_<layer_num>.
        `labels` are C texts or numbers, one above each tile. Without them, numbers above and beside
        the grid count the channels. The PNG's metadata repeat the texts of the page.

        Raises ValueError if the shape or the number of labels is wrong or a value is not finite.
        """
        name = name or f"conv_{self.layer_type}_{self.layer_num}"
        labels = [str(label) for label in np.asarray(labels)]  # they may be a tensor
        fmap = checked(name, fmap)
        height, width, channels = fmap.shape
        kind = "tile" if labels else "channel"
        plural = "s" if channels > 1 else ""
        heading = f"{self.values} · {channels} {kind}{plural} of {height}×{width}"
        scale = Scale(self.scale, fmap)
        caption = scale.describe(fmap)
        zoom = find_zoom(fmap.shape, square, self.figsize)
        tiles = draw_tiles(fmap, scale, zoom)
        blocks = [
            draw_text(name, TITLE_SIZE),
            draw_text(heading),
            draw_text(self.source),
            draw_text(caption),
            draw_text(""),
            draw_grid(tiles, square, labels),
        ]
        if scale.shared:
            blocks += [draw_text(""), draw_colorbar(scale)]
        page = Image.fromarray(stack(blocks))
        page.putpalette(make_palette(self.cmap or scale.default_cmap()))
        metadata = {"Title": f"{name} · {heading}", "Source": self.source, "Scale": caption}
        return save_png(page, Path(self.output_dir, f"{name}.png"), metadata)


def checked(name: str, fmap: Array) -> Array:
    """Return the values of a layer as (H, W, C); raise ValueError if they cannot be drawn."""
    shape = np.shape(fmap)
    if len(shape) != 4 or shape[0] != 1:
        raise ValueError(f"{name}: expected an array of shape (1, H, W, C), not {shape}")
    values = np.asarray(fmap[0], np.float32)
    if not np.isfinite(values).all():
        raise ValueError(f"{name}: some values are NaN or infinite")
    return values


class Scale:
    """The value `low` that becomes the first level, and the value `high` that becomes the last.

    They are two numbers if the channels share the scale, else two arrays with one for each channel.
    """

    def __init__(self, choice: str | tuple[float, float], fmap: Array) -> None:
        lowest = fmap.min((0, 1))  # (C,)
        highest = fmap.max((0, 1))
        ranges = highest - lowest
        # Rounding alone can make a constant vary by a millionth of what others vary by.
        self.flat = ranges <= 1e-6 * ranges.max()
        self.shared = choice != "channel"
        if choice == "channel":
            self.low = lowest
            self.high = np.where(self.flat, np.inf, highest)  # so that flat ones are on level 0
        elif choice == "layer":
            # Flat channels are left out: one large constant would make all others look alike.
            varied = fmap if self.flat.all() else fmap[..., ~self.flat]
            self.high = float(np.quantile(np.abs(varied), 0.99)) or 1.0
            self.low = -self.high if lowest.min() < 0 else 0.0
        else:
            self.low, self.high = choice

    def levels(self, fmap: Array) -> Array:
        """Turn values (H, W, C) into levels; those beyond the ends get the first or the last."""
        shares = (fmap - self.low) / (self.high - self.low)
        return np.rint(shares.clip(0, 1) * (LEVELS - 1)).astype(np.uint8)

    def describe(self, fmap: Array) -> str:
        """Say what the scale is, and what it does not show."""
        if not self.shared:
            return f"each tile over its own range · flat ones, crossed out: {self.flat.sum()}"
        beyond = 100 * np.mean((fmap < self.low) | (fmap > self.high))
        ends = f"from {self.low:.4g} to {self.high:.4g}"
        return f"all tiles on one scale {ends} · {beyond:.3g}% of the values beyond"

    def default_cmap(self) -> str:
        if not self.shared:
            return "gray"
        return "coolwarm" if self.low == -self.high else "viridis"


def find_zoom(shape: tuple[int, ...], columns: int, figsize: tuple[float, float]) -> int:
    """Find how many pixels wide and high a value can be."""
    height, width, channels = shape
    rows = math.ceil(channels / columns)
    room = min(figsize) * DOTS_PER_INCH // max(rows, columns)
    return max(1, int((room - 2 * FRAME_WIDTH - TILE_GAP) // max(height, width)))


def draw_tiles(fmap: Array, scale: Scale, zoom: int) -> Array:
    """Draw each channel in a frame: (C, height, width)."""
    levels = scale.levels(fmap).transpose(2, 0, 1)  # (C, H, W)
    tiles = levels.repeat(zoom, axis=2).repeat(zoom, axis=1)
    if not scale.shared:
        diagonal = np.eye(*tiles.shape[1:], dtype=bool)
        tiles[scale.flat] = np.where(diagonal | np.fliplr(diagonal), GREY, WHITE)
    frame = (FRAME_WIDTH, FRAME_WIDTH)
    return np.pad(tiles, ((0, 0), frame, frame), constant_values=GREY)


def draw_grid(tiles: Array, columns: int, labels: Sequence[str]) -> Array:
    """Put the tiles in rows, each below its label, or all between numbers.

    Between these numbers, the last tile is channel 3 + 1:

             0   1   2
        0+  [ ] [ ] [ ]
        3+  [ ] [ ]
    """
    channels, tile_height, tile_width = tiles.shape
    if len(labels) not in (0, channels):
        raise ValueError(f"expected {channels} labels, not {len(labels)}")
    rows = math.ceil(channels / columns)
    above = [draw_text(text) for text in labels or map(str, range(columns))]
    beside = [draw_text("" if labels else f"{row * columns}+ ") for row in range(rows)]
    line = beside[0].shape[0]  # the height of a text
    width = max(tile_width + TILE_GAP, *(text.shape[1] + TEXT_GAP for text in above))
    height = max(tile_height + TILE_GAP, line) + (line if labels else 0)
    margin = max(text.shape[1] for text in beside)
    grid = np.full((line + rows * height, margin + columns * width), WHITE, np.uint8)
    for channel, tile in enumerate(tiles):
        row, column = divmod(channel, columns)
        top = line + row * height
        middle = margin + column * width + width // 2
        paste(tile, grid, top, middle)
        if labels or row == 0:
            paste(above[channel], grid, top - line, middle)
        if column == 0:
            paste(beside[row], grid, top + (tile_height - line) // 2, beside[row].shape[1] // 2)
    return grid


def paste(block: Array, page: Array, top: int, middle: int) -> None:
    """Put a block on a page: its top edge, and the middle between its left and right edges."""
    height, width = block.shape
    left = middle - width // 2
    page[top : top + height, left : left + width] = block


def draw_colorbar(scale: Scale) -> Array:
    """Draw all levels in a row, between the values of the two ends."""
    low = draw_text(f"{scale.low:.4g} ")
    high = draw_text(f" {scale.high:.4g}")
    levels = np.arange(LEVELS, dtype=np.uint8).repeat(2)
    bar = np.broadcast_to(levels, (low.shape[0], levels.size))
    return np.hstack([low, bar, high])


@functools.lru_cache(1024)  # most texts recur from page to page
def draw_text(text: str, size: int = TEXT_SIZE) -> Array:
    """Draw a line of text in matplotlib's font."""
    font = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)
    ascent, descent = font.getmetrics()
    line = Image.new("L", (math.ceil(font.getlength(text)), ascent + descent), WHITE)
    ImageDraw.Draw(line).text((0, 0), text, BLACK, font)
    return np.asarray(line)


def stack(blocks: Sequence[Array]) -> Array:
    """Put blocks one below another on a page."""
    height = sum(block.shape[0] for block in blocks)
    width = max(block.shape[1] for block in blocks)
    page = np.full((height + 2 * MARGIN, width + 2 * MARGIN), WHITE, np.uint8)
    top = MARGIN
    for block in blocks:
        bottom = top + block.shape[0]
        page[top:bottom, MARGIN : MARGIN + block.shape[1]] = block
        top = bottom
    return page


@functools.cache
def make_palette(cmap: str) -> bytes:
    """Give the RGB bytes of a colormap's levels and of the greys."""
    colormap = matplotlib.colormaps.get_cmap(cmap).resampled(LEVELS)
    levels = colormap(range(LEVELS))[:, :3]  # (239, 3), without alpha, from 0 to 1
    greys = np.linspace([0, 0, 0], 1, 256 - LEVELS)  # (17, 3)
    return np.rint(255 * np.vstack([levels, greys])).astype(np.uint8).tobytes()


def save_png(picture: Image.Image, path: Path, metadata: Mapping[str, str]) -> Path:
    """Save a picture; an older file stays until the new one is complete."""
    chunks = PngInfo()
    for key, text in metadata.items():
        chunks.add_text(key, text)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(f"{path}.part")
    dpi = (DOTS_PER_INCH, DOTS_PER_INCH)
    picture.save(unfinished, "PNG", pnginfo=chunks, dpi=dpi, compress_level=1)
    unfinished.replace(path)
    return path


def main(argv: list[str] | None = None) -> int:
    """Run the command, whose messages go to stderr; return the exit status."""
    args = parse_arguments(argv)
    try:
        folders = plan_folders(args.image_path, Path(os.path.expanduser(args.output_dir)))
        # All progress that is printed, of Keras's download, too, goes to stderr or nowhere.
        with contextlib.redirect_stdout(io.StringIO() if args.quiet else sys.stderr):
            drawn = draw_pictures(folders, args)
    except KeyboardInterrupt:
        return 130
    except (ImportError, OSError, ValueError) as error:
        print(f"Visualize.py: error: {error}", file=sys.stderr)
        return 2
    return 0 if drawn == len(folders) else 2


def parse_arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Draw MobileNet's feature maps: one page per layer, with every channel on it.",
        epilog="Exit status: 0 all drawn, 2 something is wrong, 130 stopped.",
    )
    add = parser.add_argument
    add(
        "--image_path",
        nargs="+",
        action="extend",
        required=True,
        metavar="PICTURE",
        help="one or more pictures, or patterns such as cats/*.jpg; several get a folder each",
    )
    add("--output_dir", default="Images", metavar="FOLDER", help="where the pages go (Images)")
    add(
        "--layers",
        nargs="+",
        default=LAYERS,
        metavar="NAME",
        help="layers of the network, such as conv_pw_6 or conv1 (the 26 of its blocks)",
    )
    add("--after", choices=STEPS, default="conv", help="take the values after this step (conv)")
    add(
        "--scale",
        choices=("channel", "layer"),
        default="channel",
        help="what gets a scale of its own (channel); after ReLU6, that of a layer is 0 to 6",
    )
    add("--cmap", choices=matplotlib.colormaps, metavar="NAME", help="a matplotlib colormap")
    add("--weights", default="imagenet", help="imagenet (default), none (untrained) or a file")
    add("--quiet", action="store_true", help="print only errors")
    return parser.parse_args(argv)


def plan_folders(patterns: Sequence[str], output_dir: Path) -> dict[Path, str]:
    """Choose a folder for the pages of each picture, and return the pictures by folder.

    A single picture gets `output_dir`. Of several, cats/1.jpg gets its subfolder cats/1, counted
    from the folder that all pictures have in common.
    """
    paths = []
    for pattern in patterns:
        found = [pattern] if os.path.exists(pattern) else glob.glob(pattern, recursive=True)
        if not found:
            raise ValueError(f"no such picture: {pattern!r}")
        paths += sorted(found)
    if len(paths) == 1:
        return {output_dir: paths[0]}
    common = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
    folders = {}
    for path in paths:
        folder = output_dir / Path(os.path.relpath(path, common)).with_suffix("")
        if folders.setdefault(folder, path) != path:
            raise ValueError(f"{path!r} and {folders[folder]!r} would share {str(folder)!r}")
    return folders


def draw_pictures(folders: Mapping[Path, str], args: argparse.Namespace) -> int:
    """Draw the pages of each picture into its folder; return how many pictures could be read."""
    pictures = {}
    for folder, path in folders.items():
        pages = [(folder / f"{name}.png").resolve() for name in (*LAYERS, "network_input")]
        if Path(path).resolve() in pages:
            raise ValueError(f"{path!r} would be replaced: choose another --output_dir")
        try:
            pictures[folder] = read_picture(path)
        except OSError as error:
            print(f"Visualize.py: error: {error}", file=sys.stderr)
    if not pictures:
        return 0
    print("Loading MobileNet ...")
    load_tensorflow()
    weights = None if args.weights == "none" else args.weights
    model = Simple_Model(weights, args.after, args.layers)
    scale = (0, 6) if (args.after, args.scale) == ("relu", "layer") else args.scale
    for folder, picture in pictures.items():
        path = folders[folder]
        print(f"Drawing {path!r} into {str(folder)!r} ...")
        # Bytes in a file's name that are not UTF-8 become question marks.
        source = os.fsencode(os.path.basename(path)).decode(errors="replace")
        save_png(picture, folder / "network_input.png", {"Source": source})
        pages = Visualize(folder, scale, args.cmap, model.values, source)
        pages.show_each_feature_map(model.compute(picture))
    print(f"{len(pictures)} of {len(folders)} pictures drawn")
    return len(pictures)


def load_tensorflow() -> None:
    """Import Keras, and hide what TensorFlow logs: its native code writes to descriptor 2."""
    stderr = os.dup(2)
    with open(os.devnull, "w") as nowhere:
        os.dup2(nowhere.fileno(), 2)
    try:
        import keras

        keras.ops.zeros(1)  # the first operation looks for devices, and logs what it finds
    finally:
        os.dup2(stderr, 2)
        os.close(stderr)


if __name__ == "__main__":
    warnings.simplefilter("ignore")  # library warnings are for programmers
    os.environ["KERAS_BACKEND"] = "tensorflow"  # the one in requirements.txt
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # a GPU takes longer to start than it saves
    # Saves a second: TensorFlow makes a million objects, and none of them is garbage.
    gc.disable()
    atexit.register(gc.freeze)
    sys.exit(main())
