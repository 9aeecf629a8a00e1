"""Draw MobileNet's feature maps: one page per layer, with every channel on it.

Values become levels, levels become tiles, tiles stand in a grid on a page, and the page is saved as
a PNG. matplotlib gives the colours and the letters. NumPy places the tiles: one matplotlib Figure
per page is three times as slow (10.7 seconds of CPU for a picture, not 3.6), and no less code.
Other scripts import Simple_Model and Visualize: keep these names and those of their methods.
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
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib
import numpy as np
from numpy import ndarray as Array
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo

from Model import LAYERS, STEPS, Simple_Model, read_picture

# A page is an array of palette indices. 0 to 238 are levels, which a colormap colours. 239 to 255
# are 17 greys from black to white, for all that is not a value.
LEVELS = 239  # an odd number, so that 0 has a level of its own on a scale from -1 to 1
BLACK = LEVELS
GREY = 249
WHITE = 255

# Sizes are in pixels.
DOTS_PER_INCH = 144
MARGIN = 17  # around a page
TITLE_SIZE = 46  # of letters
TEXT_SIZE = 28
TEXT_GAP = 8  # between texts side by side
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

        `scale`: which values get the first and the last colour.
            "channel": the lowest and the highest of each channel.
            "layer": -m and m, where m is the 99th percentile of the absolute values (constant
            channels aside); 0 and m if no value is negative.
            (low, high): these two.
        `cmap`: a matplotlib colormap. By default, `Scale.default_cmap` chooses it.
        `values`: what the numbers are, in words, such as "convolution output".
        `source`: the picture's name.
        `figsize`: in inches of 144 pixels. All tiles fit into the smaller side, and a value is a
        square of as many pixels as this allows, at least one.
        `layer_num`, `layer_type`: the layer that is meant where no name is given.
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
        arrays than there are layers left. All pages get the same `labels`.
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
        `labels` are C texts or numbers, one above each tile, in place of the channels' numbers.
        Raises ValueError if the shape or the number of labels is wrong or a value is not finite.
        """
        name = name or f"conv_{self.layer_type}_{self.layer_num}"
        labels = [str(label) for label in np.asarray(labels)]  # from a tensor, too
        fmap = checked(name, fmap)
        height, width, channels = fmap.shape
        kind = "tile" if labels else "channel"  # with labels, it may be a layer or a picture
        count = f"{channels} {kind}s" if channels > 1 else f"1 {kind}"
        heading = f"{self.values} · {count} of {height}×{width}"
        scale = Scale(self.scale, fmap)
        caption = scale.describe(fmap)
        zoom = find_zoom(fmap.shape, square, self.figsize)
        tiles = draw_tiles(fmap, scale, zoom)
        blocks = [
            draw_text(name, TITLE_SIZE),
            *map(draw_text, filter(None, [heading, self.source, caption])),
            draw_text(""),
            draw_grid(tiles, square, labels),
        ]
        if scale.shared:
            blocks += [draw_text(""), draw_colorbar(scale)]
        page = Image.fromarray(stack(blocks))
        page.putpalette(make_palette(self.cmap or scale.default_cmap()))  # which makes L mode P
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

    They are numbers if the channels share the scale, else arrays of shape (C,).
    """

    def __init__(self, choice: str | tuple[float, float], fmap: Array) -> None:
        lowest = fmap.min(axis=(0, 1))  # (C,)
        highest = fmap.max(axis=(0, 1))
        ranges = highest - lowest
        # Channels that vary by less than a millionth of the most varied one count as constant.
        self.flat = ranges <= 1e-6 * ranges.max()
        self.shared = choice != "channel"
        if choice == "channel":
            self.low = lowest
            self.high = np.where(self.flat, lowest + 1, highest)  # flat ones need any range
        elif choice == "layer":
            varied = fmap if self.flat.all() else fmap[..., ~self.flat]
            sizes = np.abs(varied)
            self.high = float(np.quantile(sizes, 0.99) or sizes.max() or 1)  # never 0
            self.low = -self.high if lowest.min() < 0 else 0.0
        else:
            self.low, self.high = choice

    def levels(self, fmap: Array) -> Array:
        """Turn values (H, W, C) into levels; those beyond the ends get the first or the last."""
        shares = (fmap - self.low) / (self.high - self.low)
        return np.rint(shares.clip(0, 1) * (LEVELS - 1)).astype(np.uint8)

    def describe(self, fmap: Array) -> str:
        """Say what the scale is, and how much it does not show."""
        if not self.shared:
            flat = self.flat.sum()
            crossed = f" · {flat} flat: crossed out" if flat else ""
            return f"each tile over its own range{crossed}"
        share = np.mean((fmap < self.low) | (fmap > self.high))
        beyond = f" · {100 * share:.3g}% of the values beyond" if share else ""
        return f"all tiles on one scale from {self.low:.4g} to {self.high:.4g}{beyond}"

    def default_cmap(self) -> str:
        """Choose gray for channels, and two colours if 0 is in the middle of a shared scale."""
        if not self.shared:
            return "gray"
        return "coolwarm" if self.low == -self.high else "viridis"


def find_zoom(shape: tuple[int, ...], columns: int, figsize: tuple[float, float]) -> int:
    """Find how many pixels wide and high a value can be."""
    height, width, channels = shape
    rows = math.ceil(channels / columns)
    room = min(figsize) * DOTS_PER_INCH // max(rows, columns)  # for a tile and the gap
    side = room - TILE_GAP - 2 * FRAME_WIDTH
    return max(1, int(side // max(height, width)))


def draw_tiles(fmap: Array, scale: Scale, zoom: int) -> Array:
    """Draw each channel in a frame: (C, height, width)."""
    levels = scale.levels(fmap).transpose(2, 0, 1)  # (C, H, W)
    tiles = levels.repeat(zoom, axis=2).repeat(zoom, axis=1)
    if not scale.shared:
        diagonal = np.eye(*tiles.shape[1:], dtype=bool)
        cross = diagonal | np.fliplr(diagonal)
        tiles[scale.flat] = np.where(cross, GREY, WHITE)
    frame = (FRAME_WIDTH, FRAME_WIDTH)
    return np.pad(tiles, ((0, 0), frame, frame), constant_values=GREY)


def draw_grid(tiles: Array, columns: int, labels: Sequence[str]) -> Array:
    """Put the tiles in rows, each below its label or, without labels, with numbers around them:

         0   1   2
    0+  [ ] [ ] [ ]
    3+  [ ] [ ]         channel 4 is in row 3+, below 1
    """
    channels, tile_height, tile_width = tiles.shape
    if len(labels) not in (0, channels):
        raise ValueError(f"expected {channels} labels, not {len(labels)}")
    text_height = draw_text("").shape[0]
    row_height = max(tile_height + TILE_GAP, text_height)
    # The texts above and beside a tile, by its channel.
    if labels:
        above = dict(enumerate(map(draw_text, labels)))
        beside = {}
        row_height += text_height
    else:
        above = {column: draw_text(str(column)) for column in range(columns)}  # the first row
        beside = {first: draw_text(f"{first}+ ") for first in range(0, channels, columns)}
    left_margin = max([text.shape[1] for text in beside.values()], default=0)
    width = max(tile_width + TILE_GAP, *(text.shape[1] + TEXT_GAP for text in above.values()))
    rows = math.ceil(channels / columns)
    grid_height = text_height + rows * row_height
    grid = np.full((grid_height, left_margin + columns * width), WHITE, np.uint8)
    for channel, tile in enumerate(tiles):
        row, column = divmod(channel, columns)
        top = text_height + row * row_height
        middle = left_margin + column * width + width // 2
        paste(tile, grid, top, middle)
        if channel in above:
            paste(above[channel], grid, top - text_height, middle)
        if channel in beside:
            paste(beside[channel], grid, top + (tile_height - text_height) // 2, left_margin // 2)
    return grid


def paste(block: Array, page: Array, top: int, middle: int) -> None:
    """Put a block on a page, from `top` down, and centred on the column `middle`."""
    height, width = block.shape
    left = middle - width // 2
    page[top : top + height, left : left + width] = block


def draw_colorbar(scale: Scale) -> Array:
    """Draw all levels in a row, between the values of the two ends."""
    low = draw_text(f"{scale.low:.4g} ")
    high = draw_text(f" {scale.high:.4g}")
    levels = np.arange(LEVELS, dtype=np.uint8).repeat(2)  # two pixels each
    bar = np.broadcast_to(levels, (low.shape[0], levels.size))
    return np.hstack([low, bar, high])


@functools.lru_cache(1024)  # most texts recur from page to page
def draw_text(text: str, size: int = TEXT_SIZE) -> Array:
    """Draw a line of text in matplotlib's font."""
    font = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)
    ascent, descent = font.getmetrics()
    line = Image.new("L", (math.ceil(font.getlength(text)), ascent + descent), WHITE)
    ImageDraw.Draw(line).text((0, 0), text, BLACK, font)  # soft edges get indices in between: greys
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


def make_palette(cmap: str) -> bytes:
    """Give the RGB bytes of a colormap's levels and of the greys."""
    colormap = matplotlib.colormaps.get_cmap(cmap).resampled(LEVELS)
    levels = colormap(range(LEVELS))[:, :3]  # (239, 3), without alpha, from 0 to 1
    greys = np.linspace([0, 0, 0], 1, 256 - LEVELS)  # (17, 3)
    return np.rint(255 * np.vstack([levels, greys])).astype(np.uint8).tobytes()


def save_png(picture: Image.Image, path: Path, metadata: Mapping[str, str]) -> Path:
    """Save a picture. It replaces, when it is complete, only a file that has a Source, too."""
    if path.exists():
        with Image.open(path) as older:
            if "Source" not in older.info:
                raise OSError(f"{str(path)!r} was not drawn here: choose another folder")
    chunks = PngInfo()
    for key, text in metadata.items():
        chunks.add_text(key, text)
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = Path(f"{path}.part")
    picture.save(unfinished, "PNG", pnginfo=chunks, compress_level=1)
    unfinished.replace(path)
    return path


def main(argv: list[str] | None = None) -> int:
    """Run the command, whose messages go to stderr; return the exit status."""
    args = parse_arguments(argv)
    try:
        folders = plan_folders(args.image_path, Path(os.path.expanduser(args.output_dir)))
        # What is printed, also by Keras's download, goes to stderr, or nowhere if quiet.
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
        help="one or more pictures, or patterns such as cats/*.jpg; several get a folder each",
    )
    add("--output_dir", default="Images", metavar="FOLDER", help="where the pages go (Images)")
    add(
        "--layers",
        nargs="+",
        default=LAYERS,
        help="convolutions, such as conv_pw_6 or conv1 (by default, all but conv1)",
    )
    add("--after", choices=STEPS, default="conv", help="take the values after this step (conv)")
    add(
        "--scale",
        choices=("channel", "layer"),
        default="channel",
        help="one scale for each channel, or one for the layer (channel)",
    )
    add("--cmap", choices=matplotlib.colormaps, metavar="NAME", help="a matplotlib colormap")
    add("--weights", default="imagenet", help="imagenet (default), none (untrained) or a file")
    add("--quiet", action="store_true", help="print only errors")
    return parser.parse_args(argv)


def plan_folders(patterns: Sequence[str], output_dir: Path) -> dict[Path, str]:
    """Choose a folder for the pages of each picture; return {folder: picture}.

    A single picture gets `output_dir`. Several get subfolders: mine/cats/1.jpg and mine/dogs/1.jpg
    get cats/1 and dogs/1.
    """
    paths = []
    for pattern in patterns:
        if os.path.exists(pattern):  # a name may have brackets
            paths.append(pattern)
        else:
            paths += sorted(glob.glob(pattern, recursive=True)) or [pattern]
    if len(paths) == 1:
        return {output_dir: paths[0]}
    common = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
    folders = {}
    for path in paths:
        folder = output_dir / Path(os.path.relpath(path, common)).with_suffix("")
        if folders.get(folder, path) != path:
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
    # The ends of ReLU6 make a scale that all layers share.
    scale = (0, 6) if args.after == "relu" and args.scale == "layer" else args.scale
    for folder, picture in pictures.items():
        path = folders[folder]
        print(f"Drawing {path!r} into {str(folder)!r} ...")
        # Bytes that are not UTF-8, which no PNG can hold as text, become "�".
        source = os.fsencode(os.path.basename(path)).decode(errors="replace")
        save_png(picture, folder / "network_input.png", {"Source": source})
        pages = Visualize(folder, scale, args.cmap, model.values, source)
        pages.show_each_feature_map(model.compute(picture))
    print(f"{len(pictures)} of {len(folders)} pictures drawn")
    return len(pictures)


def load_tensorflow() -> None:
    """Import Keras without TensorFlow's log, which its native code writes to descriptor 2."""
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
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")  # a GPU takes longer to start than it saves
    # TensorFlow's million objects stay: looking for garbage, now and at the exit, takes a second.
    gc.disable()
    atexit.register(gc.freeze)
    sys.exit(main())
