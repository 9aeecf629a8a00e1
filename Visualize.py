"""Draw MobileNet's feature maps: one picture per layer, with every channel in it."""

from __future__ import annotations

import os

if __name__ == "__main__":
    import signal

    # Ctrl-C during the imports ends the program without a traceback, as it does later.
    on_interrupt = signal.getsignal(signal.SIGINT)
    if on_interrupt is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    # Notebooks and configuration files may name others, which are not installed here.
    os.environ.update(MPLBACKEND="agg", KERAS_BACKEND="tensorflow")

import argparse
import contextlib
import difflib
import functools
import math
import re
import secrets
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn, TextIO

import matplotlib
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image, ImageDraw
from PIL.PngImagePlugin import PngInfo

from Model import Simple_Model, check_weights, read_picture

# The page around the tiles, in inches, and the paper between them, in pixels.
LEFT, RIGHT, TOP, BOTTOM = 0.45, 0.32, 0.56, 0.2
HEADER = 0.4  # of the page's top: the title, and the colourbar of width BAR
BAR = 1.8
GAP = 3
# The values after the 256 levels of activations, and their shades of grey.
PAPER, LINE, CROSS = 256, 257, 258
SHADES = (255, 150, 96)
MAX_DPI = 150  # with it, a figure of 10×10 inches has at most 1500 pixels a side
# Said in full, so that a user's matplotlibrc or style cannot make the labels unreadable.
TEXT = {"family": "DejaVu Sans", "color": "black", "usetex": False, "parse_math": False}
SCALES = {
    "channel": "each channel over its own range",
    "layer": "all channels on one scale",
}


class Visualize:
    """Grids of feature maps, saved as `conv_<dw|pw>_<N>.png` in one folder.

    Attributes:
        layer_num: N of the layer that `proccess_each_feature_map` draws, at first 1.
        layer_type: its kind, "dw" (depthwise; at first) or "pw" (pointwise).
    """

    def __init__(
        self,
        output_dir: str | os.PathLike[str] = "Images",
        *,
        figsize: tuple[float, float] = (10, 10),
        scale: str = "channel",
        cmap: str | None = None,
        source: str = "not stated",
        weights: str | None = "not stated",
    ) -> None:
        """Set the look of the pictures and what they say of their origin.

        Args:
            output_dir: the folder for the pictures, made when the first one is saved.
            figsize: width (10 at least) and height of a picture, in inches of up to 150 pixels,
                or of more if an activation would else get less than a pixel.
            scale: "channel", each channel over its own range, or "layer", all of a layer's
                channels over one range, symmetric about zero.
            cmap: the name of a matplotlib colormap; None is "gray", or with scale="layer"
                "coolwarm".
            source: the input picture's file name, for the metadata.
            weights: as given to `Simple_Model`, for the metadata; None says "untrained".

        Raises:
            ValueError: an unknown scale or colormap, or a figsize without room for the title.
        """
        if scale not in SCALES:
            raise ValueError(f"unknown scale {scale!r}: choose from {', '.join(SCALES)}")
        if figsize[0] < 10 or figsize[1] < 2:
            raise ValueError(f"figsize {figsize} has no room for the title: 10×2 inches at least")
        if cmap is None:
            cmap = {"channel": "gray", "layer": "coolwarm"}[scale]
        if cmap not in matplotlib.colormaps:
            near = difflib.get_close_matches(cmap, matplotlib.colormaps, cutoff=0.4)
            raise ValueError(
                f"unknown colormap {cmap!r}: "
                + (f"did you mean {' or '.join(near)}?" if near else "try gray or viridis")
            )
        self.layer_num = 1
        self.layer_type = "dw"
        self.output_dir = output_dir
        self.figsize = tuple(figsize)
        self.scale = scale
        self.cmap = cmap
        self.source = source
        self.weights = weights

    def show_each_feature_map(self, feature_maps: Iterable[np.ndarray]) -> list[Path]:
        """Draw and save all layers: depthwise and pointwise in turn, from conv_dw_1 on.

        Args:
            feature_maps: arrays of shape (1, H, W, C), as `Simple_Model.get_feature_map` gives.

        Returns:
            The paths of the pictures, in the same order.

        Raises:
            OSError, ValueError: as `proccess_each_feature_map`.
        """
        # Matplotlib draws in this thread only; Pillow's PNG encoder runs beside it.
        with ThreadPoolExecutor(max_workers=2) as encoders:
            saves = []
            for index, fmap in enumerate(feature_maps):
                self.layer_num, self.layer_type = index // 2 + 1, ("dw", "pw")[index % 2]
                picture = self._draw(math.ceil(math.sqrt(np.shape(fmap)[-1])), fmap)
                saves.append(encoders.submit(_save, *picture))
                if index >= 4:  # bounds the memory, and tells early of a full disk
                    saves[index - 4].result()
            return [save.result() for save in saves]

    def proccess_each_feature_map(self, square: int, fmap: np.ndarray) -> Path:
        """Draw the layer `conv_<layer_type>_<layer_num>` and save it as a PNG.

        Each activation is a block of k×k pixels, one k for the picture; channel c is the tile
        in row c // square and column c % square. A channel whose range is below 1e-6 of the
        layer's largest is flat: constant up to rounding, and drawn as a crossed box.

        Args:
            square: tiles a side, at least ceil(sqrt(C)).
            fmap: array of shape (1, H, W, C).

        Returns:
            The path of the picture.

        Raises:
            ValueError: not such an array, a non-finite activation, or a `square` too small.
            OSError: the picture cannot be written; an older one by that name is kept.
        """
        return _save(*self._draw(square, fmap))

    def _draw(self, square: int, fmap: np.ndarray) -> tuple[Path, Image.Image, PngInfo, int]:
        layer = f"conv_{self.layer_type}_{self.layer_num}"
        square, fmap = int(square), np.asarray(fmap)
        if fmap.ndim != 4 or fmap.shape[0] != 1 or not fmap.size:
            raise ValueError(f"{layer}: the shape must be (1, H, W, C), not {fmap.shape}")
        _, height, width, channels = fmap.shape
        if square < 1 or square**2 < channels:
            raise ValueError(f"{layer}: {channels} channels are too many for {square}×{square}")

        low = fmap.min(axis=(0, 1, 2)).astype(np.float64)  # (C,)
        high = fmap.max(axis=(0, 1, 2)).astype(np.float64)
        with np.errstate(invalid="ignore", over="ignore"):
            spread = high - low
        broken = np.flatnonzero(~np.isfinite(spread))
        if broken.size:
            raise ValueError(
                f"{layer}, channel {broken[0]}: activations that are not finite; "
                "were the weights damaged?"
            )
        flat = (spread < 1e-6 * spread.max()) | (spread == 0)

        title = f"{layer} · {channels} channels of {height}×{width} · {flat.sum()} flat"
        if self.weights is None:
            title += " · untrained weights"
        description = (
            f"layer: {layer}\n"
            f"shape: {fmap.shape}\n"
            f"channels: {channels}, {flat.sum()} flat\n"
            f"activations: {low.min():.9g} to {high.max():.9g}\n"
            f"scale: {self.scale} ({SCALES[self.scale]})\n"
            f"colormap: {self.cmap}\n"
            f"weights: {self.weights or 'none (untrained)'}"
        )
        bound = None
        if self.scale == "layer":
            bound = max(-low.min(), high.max())
            low, spread = -bound, 2 * bound
        levels = np.rint((fmap[0] - low) * (255 / np.where(flat, np.inf, spread)))
        tiles = levels.astype(np.uint16).transpose(2, 0, 1)  # (C, H, W)

        # The largest k that keeps the page within MAX_DPI, then the dpi that just holds it.
        room = np.array(self.figsize[::-1]) - (TOP + BOTTOM, LEFT + RIGHT)  # height, width
        k = int(min(((room * MAX_DPI - 1) / square - GAP) / (height, width)))
        mosaic = _mosaic(tiles, flat, square, max(k, 1))
        dpi = math.ceil(max(mosaic.shape / room))

        # Rounded here, since matplotlib's own conversion to bytes cuts off: 113.99… to 113.
        colors = np.rint(matplotlib.colormaps[self.cmap](np.linspace(0, 1, 256)) * 255)[:, :3]
        colors = np.vstack([colors, *([shade] * 3 for shade in SHADES)]).astype(np.uint8)
        if (colors == colors[:, :1]).all():
            colors = colors[:, 0]  # a grey picture is a third of the bytes and of the work
        tiled = Image.fromarray(np.take(colors, mosaic, axis=0))
        rows = math.ceil(channels / square)
        page = _page(self.figsize, dpi, mosaic.shape, square, rows, SCALES[self.scale])
        page = page.convert(tiled.mode)
        page.paste(_header(self.figsize[0], dpi, title, bound, colors), (0, 0))
        page.paste(tiled, (round(LEFT * dpi), round(TOP * dpi)))

        text = PngInfo()
        for key, value in {
            "Title": title,
            "Source": str(self.source),
            "Description": description,
            "Software": _versions(),
        }.items():
            # A file name may hold bytes that are no text.
            text.add_text(key, value.encode("utf-8", "replace").decode())
        return Path(self.output_dir, f"{layer}.png"), page, text, dpi


def _mosaic(tiles: np.ndarray, flat: np.ndarray, square: int, k: int) -> np.ndarray:
    """Arrange tiles (C, H, W) row by row, each value a k×k block; cross the flat ones out."""
    channels, height, width = tiles.shape
    cross = Image.new("I", (k * width, k * height), PAPER)
    pen = ImageDraw.Draw(cross)
    pen.line((0, 0, cross.width - 1, cross.height - 1), fill=CROSS, width=2)
    pen.line((0, cross.height - 1, cross.width - 1, 0), fill=CROSS, width=2)
    blocks = tiles.repeat(k, axis=1).repeat(k, axis=2)
    blocks[flat] = np.asarray(cross)

    # A pixel of paper around each tile, and above and left of that a line.
    cells = np.pad(blocks, ((0, square**2 - channels), (1, 1), (1, 1)), constant_values=PAPER)
    cells = np.pad(cells, ((0, 0), (1, 0), (1, 0)), constant_values=LINE)
    _, down, across = cells.shape
    grid = cells.reshape(square, square, down, across).swapaxes(1, 2)
    grid = np.pad(grid.reshape(square * down, -1), (0, 1), constant_values=LINE)
    rows = math.ceil(channels / square)
    grid[rows * down + 1 :] = PAPER
    grid[(rows - 1) * down + 1 :, (channels - (rows - 1) * square) * across + 1 :] = PAPER
    return grid


# The 26 layers share a few geometries, and labels are most of the work of drawing.
@functools.lru_cache(maxsize=16)
def _page(
    figsize: tuple[float, float],
    dpi: int,
    mosaic: tuple[int, int],
    columns: int,
    rows: int,
    scale: str,
) -> Image.Image:
    """Draw the paper and the rulers around a mosaic of that height and width in pixels."""
    figure = Figure(figsize, dpi, facecolor="white")
    label = {**TEXT, "size": 8, "transform": figure.dpi_scale_trans}
    left, top = LEFT, figsize[1] - TOP
    down, across = np.divide(mosaic, columns * dpi)
    every = math.ceil(0.2 / min(down, across))  # labels closer than 0.2 inches would touch
    for column in range(0, columns, every):
        x = left + (column + 0.5) * across
        figure.text(x, top + 0.04, str(column), ha="center", va="bottom", **label)
    for row in range(0, rows, every):
        y = top - (row + 0.5) * down
        number = str(row * columns)
        figure.text(left - 0.06, y, number, ha="right", va="center_baseline", **label)
    caption = f"channel = row label + column label   ·   {scale}   ·   crossed box = flat channel"
    figure.text(left, 0.07, caption, **label)
    return _render(figure)


def _header(
    width: float, dpi: int, title: str, bound: float | None, colors: np.ndarray
) -> Image.Image:
    """Draw the title and, for one scale from -bound to bound, its colourbar."""
    figure = Figure((width, HEADER), dpi, facecolor="white")
    label = {**TEXT, "size": 8, "transform": figure.dpi_scale_trans}
    figure.text(LEFT, HEADER / 2, title, va="center_baseline", **{**label, "size": 13})
    if bound is None:
        return _render(figure)
    left, bottom, height = width - RIGHT - BAR, 0.23, 0.1
    figure.text(left - 0.1, bottom + height / 2, "activation", ha="right", va="center", **label)
    for share, value, align in ((0, -bound, "left"), (0.5, 0, "center"), (1, bound, "right")):
        number = f"{value:.3g}".replace("-", "\N{MINUS SIGN}")
        figure.text(left + share * BAR, 0.09, number, ha=align, **label)
    bar = Image.fromarray(colors[np.newaxis, :256])
    header = _render(figure).convert(bar.mode)
    bar = bar.resize((round(BAR * dpi), round(height * dpi)), Image.Resampling.NEAREST)
    header.paste(bar, (round(left * dpi), round((HEADER - bottom - height) * dpi)))
    return header


def _render(figure: Figure) -> Image.Image:
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("L")


def _save(path: Path, picture: Image.Image, text: PngInfo, dpi: int) -> Path:
    """Write the picture beside its place, move it there whole, and return its path."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(part, "xb") as file:
                # Level 1 takes 2/5 of the time of level 6, for 10% more bytes.
                picture.save(file, "png", pnginfo=text, dpi=(dpi, dpi), compress_level=1)
                file.flush()
                os.fsync(file.fileno())  # else a power cut could leave an empty file there
            os.replace(part, path)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
    except FileExistsError as error:
        raise NotADirectoryError(f"cannot write {str(path)!r}: its folder is a file") from error
    except OSError as error:
        raise type(error)(f"cannot write {str(path)!r}: {error.strerror or error}") from error
    return path


def _versions() -> str:
    modules = ("tensorflow", "keras", "numpy", "matplotlib", "PIL")
    loaded = [f"{name} {sys.modules[name].__version__}" for name in modules if name in sys.modules]
    return f"MobileNet feature maps ({', '.join(loaded)})"


_HOLDER = "import sys; sys.stderr.buffer.write(sys.stdin.buffer.read())"


@contextlib.contextmanager
def _messages_held() -> Iterator[TextIO]:
    """Hold back what is written to file descriptor 2; yield a stream to the real stderr.

    TensorFlow's native code logs there, whatever the environment says, before Python can set
    a level. Another process holds the lines, and lets them out if the block fails for a reason
    that is not the user's, also if native code takes this whole process down.
    """
    command = [sys.executable, "-I", "-S", "-c", _HOLDER]
    # In a session of its own, since Ctrl-C in a terminal reaches the whole process group.
    holder = subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)
    drop = False
    with open(os.dup(2), "w", 1, sys.stderr.encoding, "backslashreplace") as stderr:
        os.dup2(holder.stdin.fileno(), 2)
        try:
            yield stderr
            drop = True
        except (KeyboardInterrupt, SystemExit, OSError, ValueError):
            drop = True
            raise
        finally:
            sys.stderr.flush()
            os.dup2(stderr.fileno(), 2)
            if drop:
                holder.kill()
            holder.communicate()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message}\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; return its exit status."""
    parser = _Parser(prog="Visualize.py", description=__doc__)
    add = parser.add_argument
    add(
        "--image_path",
        nargs="+",
        action="extend",
        required=True,
        metavar="PICTURE",
        help="one or more pictures",
    )
    add("--output_dir", default="Images", help="where the grids go (default: %(default)s)")
    add(
        "--weights",
        default="imagenet",
        help="imagenet, none (untrained), or a weights file (default: %(default)s)",
    )
    add(
        "--scale",
        default="channel",
        choices=SCALES,
        help="one range for each channel, or one for each layer (default: %(default)s)",
    )
    add("--cmap", help="a matplotlib colormap (default: gray; with --scale layer, coolwarm)")
    add("--quiet", action="store_true", help="print nothing but errors")
    args = parser.parse_args(argv)

    # What can be told without TensorFlow is told at once.
    weights = None if args.weights == "none" else args.weights
    try:
        visualize = Visualize(args.output_dir, scale=args.scale, cmap=args.cmap, weights=weights)
        if weights not in (None, "imagenet"):
            check_weights(weights)
        folders = _folders(args.image_path, args.output_dir)
    except (OSError, ValueError) as error:
        parser.error(str(error))

    try:
        with _messages_held() as stderr:
            return _run(visualize, weights, folders, args.quiet, stderr)
    except KeyboardInterrupt:
        return 130
    except (ImportError, OSError, ValueError) as error:
        _complain(error, sys.stderr)
        return 1


def _folders(paths: Sequence[str], output_dir: str) -> dict[str, Path]:
    """Give the folder of each picture's grids, if it can be written to without a loss."""
    if not output_dir:
        raise ValueError("the name of the output folder is empty")
    folders: dict[str, Path] = {}
    owners: dict[str, str] = {}
    for path in paths:
        folder = Path(output_dir)
        if len(paths) > 1:
            folder /= os.path.splitext(os.path.basename(path))[0]  # never "..", as a stem can be
        # Casefolded, since on some file systems Bird and bird are one name.
        owner = owners.setdefault(str(folder).casefold(), path)
        if owner in folders:
            raise ValueError(
                f"{owner!r} and {path!r} would share the folder {str(folder)!r}: rename one, or "
                "take two runs"
            )
        existing = next(parent for parent in (folder, *folder.parents) if os.path.exists(parent))
        if not existing.is_dir():
            raise ValueError(f"{str(existing)!r} is not a folder: choose another --output_dir")
        if not os.access(existing, os.W_OK | os.X_OK):
            raise ValueError(f"cannot write into {str(existing)!r}: choose another --output_dir")
        folders[path] = folder
    places = {folder.resolve() for folder in folders.values()}
    for path in paths:
        place = Path(path).resolve()
        if place.parent in places and re.fullmatch(r"conv_[dp]w_\d+\.png", place.name):
            raise ValueError(f"a grid would replace {path!r}: choose another --output_dir")
    return folders


def _run(
    visualize: Visualize,
    weights: str | None,
    folders: dict[str, Path],
    quiet: bool,
    stderr: TextIO,
) -> int:
    """Draw the pictures that can be read, each into its folder; return the exit status."""
    readable = []
    for path in folders:
        try:
            if os.path.exists(path) and not os.path.isdir(path) and not os.path.isfile(path):
                raise OSError(f"{path!r} is a pipe or a device: save the picture as a file first")
            read_picture(path)
            readable.append(path)
        except (OSError, ValueError) as error:
            _complain(error, stderr)
    if not readable:
        return 2

    from rich.console import Console
    from rich.markup import escape
    from rich.progress import track

    console = Console(file=stderr, force_terminal=stderr.isatty())
    console.quiet = quiet or not console.is_interactive
    if not quiet:
        print("Loading MobileNet ...", file=stderr)
    # Keras draws the bar of its download on stdout, which is for the result alone.
    with contextlib.redirect_stdout(sys.stderr if console.quiet else stderr):
        try:
            model = Simple_Model(weights)
        except ValueError as error:  # a damaged file: Keras's, or one that the user passed
            _complain(error, stderr)
            return 1 if weights == "imagenet" else 2

    output_dir = visualize.output_dir
    paths: list[Path] = []
    drawn = 0
    for path in readable:
        try:
            feature_maps = model.get_feature_map(path)
        except (OSError, ValueError) as error:  # the file has changed since it was read above
            _complain(error, stderr)
            continue
        visualize.source, visualize.output_dir = os.path.basename(path), folders[path]
        label = visualize.source
        if len(readable) > 1:
            label += f" ({readable.index(path) + 1} of {len(readable)})"
        bar = track(
            feature_maps,
            escape(label),
            console=console,
            transient=True,
            disable=console.quiet,
        )
        with contextlib.closing(bar):  # it hides the cursor, also when the drawing fails
            paths += visualize.show_each_feature_map(bar)
        drawn += 1
    if drawn and not quiet:
        what, where = repr(visualize.source), repr(str(paths[0].parent))
        if drawn > 1:
            what, where = f"{drawn} pictures", f"folders of {str(output_dir)!r}"
        print(f"{len(paths)} grids of {what} saved in {where}", flush=True)
    return 0 if drawn == len(folders) else 2


def _complain(error: Exception, stderr: TextIO) -> None:
    print(f"Visualize.py: error: {error}", file=stderr)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, on_interrupt)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # cleans up, as Ctrl-C does
    # Where these are closed, as some schedulers do, they would be None.
    sys.stdout = sys.stdout or open(os.devnull, "w")  # noqa: SIM115
    sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
    sys.stdout.reconfigure(errors="backslashreplace")  # for file names that it cannot encode
    sys.exit(main())
