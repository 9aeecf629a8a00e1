"""Draw MobileNet's feature maps: one page per layer, with every channel on it.

A channel's values become levels, which a colormap will colour. The levels become a tile. The tiles
of a layer stand in a grid on a page, which is saved as a PNG. matplotlib gives colours and a font,
and NumPy places the tiles: a Figure per page takes three times as long (10.7 seconds of CPU for a
picture, not 3.6). Other scripts use `Simple_Model`, `Visualize` and their methods: keep the names.
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
#   0 to 238    levels, which a colormap will colour
#   239 to 255  greys from black to white, for frames and for letters with soft edges
LEVELS = 239  # an odd number, so that a scale from -1 to 1 has a level for 0
BLACK = 239
GREY = 249  # pale
WHITE = 255

# Sizes are in pixels.
DOTS_PER_INCH = 144
MARGIN = 17  # around a page
TITLE_SIZE = 46  # of letters
TEXT_SIZE = 28  # of letters
FRAME_WIDTH = 1  # around a tile
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

        `scale`: which values get the first and the last colour.
            "channel": the lowest and the highest value of each channel.
            "layer": -m (0 if no value is negative) and m, the 99th percentile of the magnitudes.
            (low, high): these two values.
        `cmap`: the name of a matplotlib colormap. None: the scale chooses one.
        `values`: what the numbers are, in words, such as "convolution output".
        `source`: the picture's name.
        `figsize`: inches of 144 pixels. The tiles, without texts, fit into its smaller side.
        `layer_num`, `layer_type`: the first layer, where arrays come without names.
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

        `feature_maps` are arrays by name, as `get_feature_map` gives them. Arrays without names are
        named after LAYERS, from conv_<layer_type>_<layer_num> on; ValueError if there are too many.
        The same `labels` go onto every page, so each layer must have len(labels) channels.
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

        with ThreadPoolExecutor() as threads:  # PNGs are compressed side by side
            return list(threads.map(draw, feature_maps))

    def proccess_each_feature_map(
        self, square: int, fmap: Array, name: str | None = None, labels: Sequence = ()
    ) -> Path:
        """Draw one layer with `square` tiles in a row, save `<name>.png` and return its path.

        `fmap` is an array of shape (1, H, W, C). Its channel c is the tile in row c // square and
        column c % square. Without a `name`, the layer is called conv_<layer_type>_<layer_num>.
        `labels` are C texts or numbers, one above each tile, in place of the channels' numbers: the
        maps may then come from several layers or pictures, so the page speaks of tiles.
        Raises ValueError if the shape or the number of labels is wrong or a value is not finite.
        """
        name = name or f"conv_{self.layer_type}_{self.layer_num}"
        labels = [f" {label!s} " for label in np.asarray(labels)]  # which reads tensors, too
        maps = checked(name, fmap)
        height, width, channels = maps.shape
        scale = Scale(self.scale, maps)
        zoom = find_zoom(maps.shape, square, self.figsize)
        tiles = draw_tiles(maps, scale, zoom)
        grid = draw_labelled(tiles, square, labels) if labels else draw_numbered(tiles, square)
        kind = "tile" if labels else "channel"
        plural = "s" if channels > 1 else ""
        heading = f"{self.values} · {channels} {kind}{plural} of {height}×{width}"
        blocks = [
            draw_text(name, TITLE_SIZE),
            draw_text(heading),
            draw_text(scale.describe(maps)),
            draw_text(self.source),
            draw_text(""),  # an empty line
            grid,
        ]
        if scale.shared:
            blocks += [draw_text(""), draw_colorbar(scale)]
        page = apply_colormap(stack(blocks), self.cmap or scale.default_cmap())
        return save_png(page, Path(self.output_dir, f"{name}.png"), self.source)


def checked(name: str, fmap: Array) -> Array:
    """Return the maps of a layer as (H, W, C). Raise ValueError if they cannot be drawn."""
    if fmap.ndim != 4 or len(fmap) != 1:
        raise ValueError(f"{name}: expected an array of shape (1, H, W, C), not {fmap.shape}")
    maps = np.asarray(fmap[0], np.float32)
    if not np.isfinite(maps).all():
        raise ValueError(f"{name}: some values are NaN or infinite")
    return maps


class Scale:
    """Turns values into levels: `low` into the first one, `high` into the last.

    Both are numbers, or arrays of shape (C,) if each channel has its own.
    """

    def __init__(self, choice: str | tuple[float, float], maps: Array) -> None:
        lowest = maps.min(axis=(0, 1))  # (C,)
        highest = maps.max(axis=(0, 1))
        ranges = highest - lowest
        # Flat: constant, up to rounding errors, beside the channel that varies most.
        self.flat = ranges <= 1e-6 * ranges.max()
        self.shared = choice != "channel"
        if choice == "channel":
            self.low = lowest
            self.high = np.where(self.flat, lowest + 1, highest)  # + 1 avoids 0 / 0
        elif choice == "layer":
            # A large constant would leave few levels to the channels that vary.
            varied = maps if self.flat.all() else maps[..., ~self.flat]
            sizes = np.abs(varied)
            self.high = float(np.quantile(sizes, 0.99) or sizes.max() or 1)  # the first not 0
            self.low = -self.high if varied.min() < 0 else 0.0
        else:
            self.low, self.high = choice

    def levels(self, maps: Array) -> Array:
        """Turn values into levels; values beyond the ends get the first or the last."""
        shares = (maps - self.low) / (self.high - self.low)
        return np.rint(shares.clip(0, 1) * (LEVELS - 1)).astype(np.uint8)

    def describe(self, maps: Array) -> str:
        """Say what the scale is, and how much it leaves out."""
        if not self.shared:
            count = self.flat.sum()
            crossed = f" · {count} flat: crossed out" if count else ""
            return f"each tile over its own range{crossed}"
        beyond = 100 * np.mean((maps < self.low) | (maps > self.high))
        ends = f"from {self.low:.4g} to {self.high:.4g}"
        return f"all tiles on one scale {ends} · {beyond:.3g}% of the values beyond"

    def default_cmap(self) -> str:
        """Choose gray, coolwarm if 0 is in the middle of a shared scale, or viridis."""
        if not self.shared:
            return "gray"
        return "coolwarm" if self.low == -self.high else "viridis"


def find_zoom(shape: tuple[int, ...], columns: int, figsize: tuple[float, float]) -> int:
    """Find the largest zoom (pixels for each value, each way) that fits all tiles into figsize."""
    height, width, channels = shape
    rows = math.ceil(channels / columns)
    room = min(figsize) * DOTS_PER_INCH // max(rows, columns)  # for each tile
    zoom = (room - 2 * FRAME_WIDTH - TILE_GAP) // max(height, width)
    return max(1, int(zoom))


def draw_tiles(maps: Array, scale: Scale, zoom: int) -> Array:
    """Draw each channel in a frame: (C, height, width)."""
    levels = scale.levels(maps).transpose(2, 0, 1)  # (C, H, W)
    tiles = levels.repeat(zoom, axis=2).repeat(zoom, axis=1)
    if not scale.shared:  # on a range of its own, a flat channel has no colour
        diagonal = np.eye(*tiles.shape[1:], dtype=bool)
        cross = diagonal | np.fliplr(diagonal)
        tiles[scale.flat] = np.where(cross, GREY, WHITE)
    frame = (FRAME_WIDTH, FRAME_WIDTH)
    return np.pad(tiles, ((0, 0), frame, frame), constant_values=GREY)


def draw_numbered(tiles: Array, columns: int) -> Array:
    """Put the tiles in rows, with numbers above and beside them.

         0   1   2
    0+  [ ] [ ] [ ]
    3+  [ ] [ ]         channel 4 is in row 3+, below 1
    """
    apart = "\N{HAIR SPACE}"  # keeps column numbers apart
    numbers = [draw_text(f"{apart}{column}{apart}") for column in range(columns)]
    rows = [[draw_text(""), *numbers]]
    for first in range(0, len(tiles), columns):
        rows.append([draw_text(f"{first}+ "), *tiles[first : first + columns]])
    return draw_table(rows)


def draw_labelled(tiles: Array, columns: int, labels: Sequence[str]) -> Array:
    """Put the tiles in rows, each below its label."""
    if len(labels) != len(tiles):
        raise ValueError(f"expected {len(tiles)} labels, not {len(labels)}")
    blank = draw_text("")  # in place of a row's number
    rows = []
    for first in range(0, len(tiles), columns):
        row = slice(first, first + columns)
        rows.append([blank, *map(draw_text, labels[row])])
        rows.append([blank, *tiles[row]])
    return draw_table(rows)


def draw_table(rows: Sequence[Sequence[Array]]) -> Array:
    """Put each block in the middle of a cell. The columns after the first are equally wide."""
    first_width = max(row[0].shape[1] for row in rows)
    other_width = TILE_GAP + max(block.shape[1] for row in rows for block in row[1:])
    widths = [first_width] + [other_width] * (len(rows[0]) - 1)
    heights = [TILE_GAP + max(block.shape[0] for block in row) for row in rows]
    table = np.full((sum(heights), sum(widths)), WHITE, np.uint8)
    top = 0
    for row, height in zip(rows, heights):
        left = 0
        for block, width in zip(row, widths):
            y = top + (height - block.shape[0]) // 2
            x = left + (width - block.shape[1]) // 2
            table[y : y + block.shape[0], x : x + block.shape[1]] = block
            left += width
        top += height
    return table


def draw_colorbar(scale: Scale) -> Array:
    """Draw all levels in a row, between the values of the two ends."""
    low = draw_text(f"{scale.low:.4g} ")
    high = draw_text(f" {scale.high:.4g}")
    line = np.arange(LEVELS, dtype=np.uint8).repeat(2)  # two pixels for each level
    bar = np.tile(line, (low.shape[0], 1))
    return np.hstack([low, bar, high])


@functools.lru_cache(1024)  # most texts recur from page to page
def draw_text(text: str, size: int = TEXT_SIZE) -> Array:
    """Draw a line of text in matplotlib's font."""
    font = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)
    ascent, descent = font.getmetrics()
    width = math.ceil(font.getlength(text))
    # These are palette indices: at soft edges, Pillow puts those between BLACK and WHITE.
    line = Image.new("L", (width, ascent + descent), WHITE)
    ImageDraw.Draw(line).text((0, 0), text, BLACK, font)
    return np.asarray(line)


def stack(blocks: Sequence[Array]) -> Array:
    """Put blocks one below another, on a page with margins."""
    height = sum(block.shape[0] for block in blocks)
    width = max(block.shape[1] for block in blocks)
    page = np.full((height + 2 * MARGIN, width + 2 * MARGIN), WHITE, np.uint8)
    top = MARGIN
    for block in blocks:
        bottom = top + block.shape[0]
        page[top:bottom, MARGIN : MARGIN + block.shape[1]] = block
        top = bottom
    return page


def apply_colormap(page: Array, cmap: str) -> Image.Image:
    """Turn palette indices into an image: levels get a colormap's colours, the others greys."""
    colormap = matplotlib.colormaps.get_cmap(cmap).resampled(LEVELS)
    colours = colormap(range(LEVELS))[:, :3]  # RGB from 0 to 1
    greys = np.linspace([0, 0, 0], [1, 1, 1], 256 - LEVELS)
    palette = np.rint(255 * np.vstack([colours, greys])).astype(np.uint8)  # (256, 3)
    image = Image.fromarray(page)
    image.putpalette(palette.tobytes())  # makes mode L mode P
    return image


def save_png(picture: Image.Image, path: Path, source: str) -> Path:
    """Save a picture, with the name of its source among the metadata; return the path."""
    refuse_to_replace(path)
    metadata = PngInfo()
    metadata.add_text("Source", source)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".part")
    picture.save(unfinished, "PNG", pnginfo=metadata, compress_level=1)  # fast
    unfinished.replace(path)
    return path


def refuse_to_replace(path: Path) -> None:
    """Raise OSError if the file is not one of `save_png`: it may be somebody's own."""
    if path.exists():
        with Image.open(path) as older:
            if "Source" not in older.info:  # each file of save_png has one
                raise OSError(f"{str(path)!r} was not drawn here: choose another folder")


def main(argv: list[str] | None = None) -> int:
    """Run the command; return the exit status."""
    args = parse_arguments(argv)
    try:
        folders = plan_folders(args.image_path, Path(os.path.expanduser(args.output_dir)))
        # Keras prints its download, as we do our messages: all to standard error, or nowhere.
        messages = io.StringIO() if args.quiet else sys.stderr
        with contextlib.redirect_stdout(messages):
            drawn = draw_pictures(folders, args)
    except KeyboardInterrupt:
        return 130
    except (ImportError, OSError, ValueError) as error:
        print(f"Visualize.py: error: {error}", file=sys.stderr)
        return 2
    return 0 if drawn == len(folders) else 2


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
    """Choose a folder for the pages of each picture; return {folder: picture}.

    A single picture gets `output_dir`. Each of several gets a subfolder, named by its path below
    their common folder: my/cats/1.jpg and my/dogs/1.jpg get cats/1 and dogs/1.
    """
    paths = []
    for pattern in patterns:
        if os.path.exists(pattern):  # a name may have brackets
            paths.append(pattern)
        else:  # what matches nothing is kept, and told when it cannot be read
            paths += sorted(glob.glob(pattern, recursive=True)) or [pattern]
    if len(paths) == 1:
        return {output_dir: paths[0]}
    parents = [os.path.dirname(os.path.abspath(path)) for path in paths]
    common = os.path.commonpath(parents)
    folders = {}
    for path in paths:
        folder = output_dir / Path(os.path.relpath(path, common)).with_suffix("")
        if folder in folders and folders[folder] != path:
            raise ValueError(f"{path!r} and {folders[folder]!r} would share {str(folder)!r}")
        folders[folder] = path
    return folders


def draw_pictures(folders: Mapping[Path, str], args: argparse.Namespace) -> int:
    """Draw the pages of each picture into its folder; return how many pictures could be read."""
    pictures = {}
    for folder, path in folders.items():
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
    scale = args.scale
    if scale == "layer" and args.after == "relu":
        scale = (0, 6)  # the ends of ReLU6, so that layers can be compared
    for folder, picture in pictures.items():
        path = folders[folder]
        print(f"Drawing {path!r} into {str(folder)!r} ...")
        # A file's name may have bytes that are not UTF-8. A PNG cannot hold them as text.
        source = os.path.basename(path).encode(errors="replace").decode()
        save_png(picture, folder / "network_input.png", source)
        pages = Visualize(folder, scale, args.cmap, values=model.values, source=source)
        pages.show_each_feature_map(model.compute(picture))
    print(f"{len(pictures)} of {len(folders)} pictures drawn")
    return len(pictures)


def load_tensorflow() -> None:
    """Import Keras on TensorFlow, but hide what TensorFlow's native code logs to descriptor 2."""
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
    os.environ["KERAS_BACKEND"] = "tensorflow"  # the one in requirements.txt
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # a picture takes 60 ms on the CPU
    gc.disable()  # spares half a second of searching TensorFlow's million objects for garbage
    status = main()
    gc.freeze()  # spares the same search at the exit
    sys.exit(status)
