"""The pages, read back from their PNGs, show each value and each word at its place."""

import math
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib
import matplotlib.style
import numpy as np
import pytest
from conftest import (
    CAPTION,
    GREY,
    HEADING,
    LAST_LEVEL,
    ROOT,
    SIZES,
    SOURCE,
    WHITE,
    assert_line,
    find_tiles,
    pixels_of,
)
from matplotlib.ft2font import FT2Font
from PIL import Image

from Model import LAYERS
from Visualize import MARGIN, TITLE_SIZE, Visualize, draw_text


def random_maps(height=7, channels=10, seed=0, width=None):
    """A layer whose channels differ in range and offset."""
    chance = np.random.default_rng(seed)
    fmap = chance.normal(size=(1, height, width or height, channels))
    fmap *= chance.uniform(0.1, 9, channels)
    return (fmap + chance.normal(size=channels)).astype(np.float32)


def draw(folder, fmap, square=4, name="layer", labels=(), **options):
    return Visualize(folder, **options).proccess_each_feature_map(square, fmap, name, labels)


def tiles_of(path, fmap):
    return find_tiles(path, *fmap.shape[1:3])


def assert_levels(path, fmap, ends):
    """Check each tile against its channel, whose first and last level stand for its `ends`."""
    tiles = tiles_of(path, fmap)
    assert len(tiles) == len(ends) == fmap.shape[3]
    for values, tile, (low, high) in zip(np.moveaxis(fmap[0], 2, 0), tiles, ends):
        levels = ((values - low) / (high - low) * LAST_LEVEL).clip(0, LAST_LEVEL)
        enlarged = np.kron(levels, np.ones((tile.zoom, tile.zoom)))
        np.testing.assert_allclose(tile.pixels, enlarged, rtol=0, atol=0.501)


def assert_own_ranges(path, fmap):
    channels = np.moveaxis(fmap[0], 2, 0).astype(float)
    assert_levels(path, fmap, [(channel.min(), channel.max()) for channel in channels])


def assert_one_scale(path, fmap, low, high):
    assert_levels(path, fmap, [(low, high)] * fmap.shape[-1])


def inked(strip):
    """The part of a strip of white on which something is drawn, and where it is."""
    rows, columns = np.nonzero(strip < WHITE)
    top, left = rows.min(), columns.min()
    part = strip[top : rows.max() + 1, left : columns.max() + 1]
    return part, top + len(part) / 2, left + part.shape[1] / 2


def assert_only_text(strip, text, *size):
    """Check that a strip shows this text and nothing else; return the middle of its ink."""
    part, middle, centre = inked(strip)
    np.testing.assert_array_equal(part, inked(draw_text(text, *size))[0], err_msg=text)
    return middle, centre


# Values.


def test_an_example_to_check_by_eye(tmp_path):
    fmap = np.zeros((1, 2, 2, 2))
    fmap[0, :, :, 0] = [[0, 1], [2, 4]]
    fmap[0, :, :, 1] = [[-10, 10], [5, 0]]
    first, second = tiles_of(draw(tmp_path, fmap, square=2), fmap)
    assert first.pixels[:: first.zoom, :: first.zoom].tolist() == [[0, 60], [119, 238]]
    assert second.pixels[:: first.zoom, :: first.zoom].tolist() == [[0, 238], [178, 119]]
    assert second.left > first.left


@pytest.mark.parametrize(("layer", "size"), list(zip(LAYERS, SIZES)))
def test_every_value_is_on_the_page(tmp_path, layer, size):
    fmap = random_maps(*size)
    (path,) = Visualize(tmp_path).show_each_feature_map({layer: fmap})
    assert path == tmp_path / f"{layer}.png"
    assert_own_ranges(path, fmap)
    columns = math.ceil(math.sqrt(size[1]))
    tiles = tiles_of(path, fmap)
    assert tiles[columns - 1].top == tiles[0].top < tiles[columns].top
    assert tiles[0].zoom == max(1, (1440 // columns - 4) // size[0])


@pytest.mark.parametrize("shape", [(6, 11), (11, 6), (2, 300), (300, 2), (900, 2)])
def test_rectangular_maps_and_spare_places(tmp_path, shape):
    fmap = random_maps(shape[0], 5, width=shape[1])
    assert_own_ranges(draw(tmp_path, fmap), fmap)
    assert len(tiles_of(draw(tmp_path, fmap, scale="layer"), fmap)) == 5


@pytest.mark.parametrize(
    ("figsize", "square", "zoom"),
    [
        ((10, 10), 12, 4),
        ((10, 10), 11, 4),  # in 12 rows
        ((20, 20), 12, 8),
        ((20, 30), 12, 8),
        ((20, 30), 11, 9),
        ((30, 20), 11, 8),
        ((1, 1), 12, 1),
    ],
)
def test_figsize_is_the_room_for_the_grid(tmp_path, figsize, square, zoom):
    fmap = random_maps(28, 128)
    path = draw(tmp_path, fmap, square, figsize=figsize)
    assert tiles_of(path, fmap)[0].zoom == zoom


def maps_with_flat_channels(side):
    """Ten channels, the widest range being 5, so that a range of at most 5e-6 is flat."""
    fmap = random_maps(side)
    fmap *= 5 / np.ptp(fmap, axis=(0, 1, 2)).max()
    wave = np.linspace(0, 1, side**2, dtype=np.float32).reshape(side, side, 1)
    fmap[0, :, :, 1:5] = wave * [1e-12, 4e-6, 6e-6, 1]
    fmap[..., 6] = 3  # constant
    return fmap


def is_crossed(tile):
    corners = [np.diagonal(tile.pixels), np.diagonal(np.fliplr(tile.pixels))]
    return set(np.unique(tile.pixels)) == {GREY, WHITE} and (np.array(corners) == GREY).all()


@pytest.mark.parametrize("side", [2, 7, 56])
@pytest.mark.filterwarnings("error")
def test_flat_channels_are_crossed_out_on_their_own_range(tmp_path, side):
    fmap = maps_with_flat_channels(side)
    path = draw(tmp_path, fmap)
    assert [is_crossed(tile) for tile in tiles_of(path, fmap)] == [
        c in (1, 2, 6) for c in range(10)
    ]
    assert_line(path, CAPTION, "each tile over its own range · 3 flat: crossed out")


def test_flat_channels_have_the_colour_of_their_value_on_one_scale(tmp_path):
    fmap = maps_with_flat_channels(7)
    path = draw(tmp_path, fmap, scale=(-4, 4))
    assert_one_scale(path, fmap, -4, 4)
    beyond = np.mean(abs(fmap) > 4)
    words = f"all tiles on one scale from -4 to 4 · {100 * beyond:.3g}% of the values beyond"
    assert_line(path, CAPTION, words)


@pytest.mark.filterwarnings("error")
def test_a_layer_that_is_all_flat(tmp_path):
    fmap = np.full((1, 3, 3, 4), 2.5)
    path = draw(tmp_path, fmap, 2)
    assert_line(path, CAPTION, "each tile over its own range · 4 flat: crossed out")
    assert all(map(is_crossed, tiles_of(path, fmap)))
    assert_one_scale(draw(tmp_path, fmap, 2, scale="layer"), fmap, 0, 2.5)
    assert_one_scale(draw(tmp_path, fmap * 0, 2, scale="layer"), fmap * 0, 0, 1)


def test_tiny_values_use_all_levels(tmp_path):
    fmap = random_maps() * np.float32(1e-30)
    assert_own_ranges(draw(tmp_path, fmap), fmap)


def test_one_signed_scale_for_a_layer(tmp_path):
    fmap = random_maps(20)
    fmap[0, 5, 5, 0] = 200
    fmap[0, 6, 6, 0] = -200
    bound = np.percentile(np.abs(fmap.astype(float)), 99)
    path = draw(tmp_path, fmap, scale="layer")
    assert_one_scale(path, fmap, -bound, bound)
    words = f"all tiles on one scale from {-bound:.4g} to {bound:.4g} · 1% of the values beyond"
    assert_line(path, CAPTION, words)
    flat = np.full((1, 20, 20, 1), 1000, np.float32)  # does not change the ends
    fmap = np.concatenate([fmap, flat], axis=3)
    assert_one_scale(draw(tmp_path, fmap, scale="layer"), fmap, -bound, bound)


def test_a_scale_from_zero_for_a_layer_without_negative_values(tmp_path):
    fmap = abs(random_maps(20))
    path = draw(tmp_path, fmap, scale="layer")
    assert_one_scale(path, fmap, 0, np.percentile(fmap.astype(float), 99))


@pytest.mark.parametrize(("highest", "end"), [(0.5, 0.5), (0, 1)])
def test_the_scale_of_a_layer_that_is_nearly_all_zeros(tmp_path, highest, end):
    fmap = np.zeros((1, 20, 20, 1), np.float32)
    fmap[0, 5, 5] = highest
    path = draw(tmp_path, fmap, scale="layer")
    words = f"all tiles on one scale from 0 to {end} · 0% of the values beyond"
    assert_line(path, CAPTION, words)


@pytest.mark.parametrize("ends", [(0, 6), [-9, 9]])
def test_two_ends_as_a_scale(tmp_path, ends):
    fmap = random_maps()
    path = draw(tmp_path, fmap, scale=ends)
    assert_one_scale(path, fmap, *ends)
    beyond = np.mean((fmap < ends[0]) | (fmap > ends[1]))
    words = f"all tiles on one scale from {ends[0]} to {ends[1]}"
    assert_line(path, CAPTION, f"{words} · {100 * beyond:.3g}% of the values beyond")
    inside = draw(tmp_path, fmap.clip(*ends), scale=ends)
    assert_line(inside, CAPTION, f"{words} · 0% of the values beyond")


@pytest.mark.parametrize(
    ("scale", "cmap", "drawn"),
    [
        ("channel", None, "gray"),
        ("layer", None, "coolwarm"),
        ((-2, 2), None, "coolwarm"),
        ((0, 6), None, "viridis"),
        ("channel", "tab10", "tab10"),
    ],
)
def test_colours(tmp_path, scale, cmap, drawn):
    path = draw(tmp_path, random_maps(), scale=scale, cmap=cmap)
    palette = np.reshape(Image.open(path).getpalette("RGB"), (-1, 3))
    expected = matplotlib.colormaps[drawn].resampled(239)(range(239))[:, :3] * 255
    np.testing.assert_allclose(palette[:239], expected, atol=0.501)
    greys = np.linspace((0, 0, 0), (255, 255, 255), 17)
    np.testing.assert_allclose(palette[239:256], greys, atol=0.501)


# Words, as they are drawn.


def test_a_text_looks_as_matplotlib_writes_it():
    font = FT2Font(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf")
    font.set_size(28, 72)
    texts = ["conv_dw_1", "24+", "·×", "jpg", "42+"]
    drawn = {text: 255 / 16 * (WHITE - inked(draw_text(text))[0]) for text in texts}
    for text in texts:
        font.set_text(text)
        font.draw_glyphs_to_bitmap()
        written = np.asarray(font.get_image())
        alike = {other: likeness(written, drawn[other]) for other in texts}
        assert max(alike, key=alike.get) == text
        assert alike[text] > 0.8


def likeness(*pictures):
    """The correlation of two pictures of letters, each cut to its letters and reduced."""
    small = []
    for picture in pictures:
        rows, columns = np.nonzero(picture > 64)
        cut = picture[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        small.append(Image.fromarray(cut.astype(np.uint8)).resize((60, 20)))
    return np.corrcoef(np.ravel(small[0]), np.ravel(small[1]))[0, 1]


@pytest.mark.parametrize(("channels", "counted"), [(10, "10 channels"), (1, "1 channel")])
def test_the_words_above_the_grid(tmp_path, channels, counted):
    fmap = random_maps(14, channels)
    path = draw(tmp_path, fmap, values="numbers", source="Vögel 鳥.jpg")
    page = pixels_of(path)
    title = draw_text("layer", TITLE_SIZE)
    assert_only_text(page[: MARGIN + len(title)], "layer", TITLE_SIZE)
    corner = page[MARGIN : MARGIN + len(title), MARGIN : MARGIN + title.shape[1]]
    np.testing.assert_array_equal(corner, title)
    assert_line(path, HEADING, f"numbers · {counted} of 14×14")
    assert_line(path, CAPTION, "each tile over its own range")
    assert_line(path, SOURCE, "Vögel 鳥.jpg")
    assert_line(path, SOURCE + 1, "")


@pytest.mark.parametrize(("channels", "columns"), [(16, 4), (1024, 32), (10_201, 101)])
def test_numbers_stand_above_their_columns_and_beside_their_rows(tmp_path, channels, columns):
    fmap = random_maps(7, channels)
    path = draw(tmp_path, fmap, columns)
    page = pixels_of(path)
    tiles = tiles_of(path, fmap)
    height, width = tiles[0].pixels.shape
    spacing = tiles[1].left - tiles[0].left
    line = len(draw_text(""))
    top = MARGIN + len(draw_text("", TITLE_SIZE)) + 4 * line  # after three lines and an empty one
    for column, tile in enumerate(tiles[:columns]):
        middle = tile.left + width / 2
        left = int(middle - spacing / 2)
        strip = page[top : top + line, left : left + spacing]
        _, centre = assert_only_text(strip, f"\N{HAIR SPACE}{column}\N{HAIR SPACE}")
        assert abs(left + centre - middle) <= 2
    left = MARGIN + draw_text(f"{(channels - 1) // columns * columns}+").shape[1]
    for tile, first in zip(tiles[::columns], range(0, channels, columns)):
        middle = tile.top + height / 2
        top = int(middle - 17)
        row, _ = assert_only_text(page[top : top + 34, :left], f"{first}+")
        assert abs(top + row - middle) <= 3


@pytest.mark.parametrize("wide", ["51", "a label of many letters"])
def test_labels_stand_above_their_tiles(tmp_path, wide):
    fmap = random_maps(14, 3)
    labels = [447, "eyes", wide]
    path = draw(tmp_path, fmap, 2, labels=labels, figsize=(3, 3))
    page = pixels_of(path)
    tiles = tiles_of(path, fmap)
    width = tiles[0].pixels.shape[1]
    spacing = tiles[1].left - tiles[0].left
    for tile, label in zip(tiles, labels):
        middle = tile.left + width / 2
        left = int(middle - spacing / 2)
        strip = page[tile.top - 35 : tile.top - 1, left : left + spacing]
        _, centre = assert_only_text(strip, str(label))
        assert abs(left + centre - middle) <= 2
    assert_own_ranges(path, fmap)
    assert_line(path, HEADING, "values · 3 tiles of 14×14")


def test_labels_are_those_of_every_layer_and_there_is_one_for_each_tile(tmp_path):
    chosen = {"a": random_maps(5, 60), "b": random_maps(7, 60)}
    for path in Visualize(tmp_path).show_each_feature_map(chosen, labels=range(60)):
        tile = tiles_of(path, chosen[path.stem])[59]
        right = tile.left + tile.pixels.shape[1] + 2
        assert_only_text(pixels_of(path)[tile.top - 35 : tile.top - 1, tile.left : right], "59")
    with pytest.raises(ValueError, match="expected 10 labels, not 2"):
        draw(tmp_path, random_maps(), labels=["one", "two"])


def test_labels_may_be_a_tensor_or_an_array(tmp_path):
    tensorflow = pytest.importorskip("tensorflow")
    fmap = random_maps(14, 3)
    plain = pixels_of(draw(tmp_path, fmap, labels=["447", "51", "0"]))
    for numbers in (np.array([447, 51, 0]), tensorflow.constant([447, 51, 0])):
        np.testing.assert_array_equal(pixels_of(draw(tmp_path, fmap, labels=numbers)), plain)
    shares = np.array([0.1, 0.25, 1], np.float32)
    plain = pixels_of(draw(tmp_path, fmap, labels=["0.1", "0.25", "1.0"]))
    np.testing.assert_array_equal(pixels_of(draw(tmp_path, fmap, labels=shares)), plain)


def test_the_ends_of_the_colourbar(tmp_path):
    ramp = np.arange(LAST_LEVEL + 1, dtype=np.uint8).repeat(2)
    page = pixels_of(draw(tmp_path, random_maps(), scale=(-2, 6)))
    rows = [y for y, row in enumerate(page) if ramp.tobytes() in row.tobytes()]
    left = page[rows[0]].tobytes().index(ramp.tobytes())
    bar = page[rows[0] : rows[-1] + 1]
    assert (bar[:, left : left + len(ramp)] == ramp).all()
    assert_only_text(bar[:, :left], "-2")
    assert_only_text(bar[:, left + len(ramp) :], "6")
    assert len(rows) == 33
    page = pixels_of(draw(tmp_path, random_maps()))
    assert not any(ramp.tobytes() in row.tobytes() for row in page)


@pytest.mark.parametrize("source", ["a" * 200, r"$\x$_%.jpg", "PM\u202f👩\u200d🔬.png"])
@pytest.mark.filterwarnings("error")
def test_odd_sources(tmp_path, source):
    fmap = random_maps()
    path = draw(tmp_path, fmap, source=source)
    assert Image.open(path).text == {"Source": source}
    assert_own_ranges(path, fmap)
    assert_line(path, SOURCE, source)


def test_a_source_whose_name_is_not_utf_8(tmp_path):
    path = draw(tmp_path, random_maps(), source="V\udcf6gel.jpg")  # as Python reads b"V\xf6gel"
    assert Image.open(path).text == {"Source": "V?gel.jpg"}


def test_what_a_font_lacks_is_seen():
    assert (draw_text("鳥.jpg") != WHITE).sum() > (draw_text(".jpg") != WHITE).sum()


# Names, settings and files.


def test_names_travel_with_the_maps(tmp_path):
    maps = {name: random_maps(3, 2, seed) for seed, name in enumerate(LAYERS[::-1])}
    for given in (maps, {"mine": random_maps(channels=17), "conv1": random_maps()}):
        folder = tmp_path / "new" / str(len(given))
        for _ in range(2):  # the second time, over the first one's files
            paths = Visualize(folder).show_each_feature_map(given)
            assert paths == [folder / f"{name}.png" for name in given]
            assert set(folder.iterdir()) == set(paths)
        for fmap, path in zip(given.values(), paths):
            assert_own_ranges(path, fmap)


def test_a_plain_list_is_counted_in_network_order(tmp_path):
    maps = [random_maps(3, 2, seed) for seed in range(26)]
    pages = Visualize(tmp_path)
    assert [path.stem for path in pages.show_each_feature_map(maps)] == LAYERS
    pages = Visualize(tmp_path, layer_num=12, layer_type="pw")
    paths = pages.show_each_feature_map(maps[:3])
    assert [path.stem for path in paths] == ["conv_pw_12", "conv_dw_13", "conv_pw_13"]
    for path, fmap in zip(paths, maps):
        assert_own_ranges(path, fmap)
    with pytest.raises(ValueError, match="4 arrays for 3 layers"):
        pages.show_each_feature_map(maps[:4])
    assert pages.proccess_each_feature_map(4, random_maps()).name == "conv_pw_12.png"
    assert Visualize(tmp_path).proccess_each_feature_map(4, maps[0]).name == "conv_dw_1.png"


def test_every_layer_goes_through_proccess_each_feature_map(tmp_path):
    seen = []

    class Spy(Visualize):
        def proccess_each_feature_map(self, square, fmap, name=None, labels=()):
            seen.append((name, square))
            return super().proccess_each_feature_map(square, fmap, name, labels)

    maps = [random_maps(3, channels) for channels in range(1, 27)]
    Spy(tmp_path).show_each_feature_map(maps)
    squares = [math.ceil(math.sqrt(channels)) for channels in range(1, 27)]
    assert sorted(seen) == sorted(zip(LAYERS, squares))


def test_what_cannot_be_drawn(tmp_path):
    pages = Visualize(tmp_path / "in" / "side")
    fmap = random_maps()
    for shape in ((7, 7, 9), (2, 7, 7, 9), (1, 14, 14)):
        with pytest.raises(ValueError, match="x: expected an array of shape"):
            pages.show_each_feature_map({"x": np.zeros(shape)})
    for value in (np.nan, np.inf):
        fmap[0, 3, 3, 3] = value
        with pytest.raises(ValueError, match="x: some values are NaN or infinite"):
            pages.proccess_each_feature_map(4, fmap, "x")
    with pytest.raises(ValueError, match="virdis"):
        Visualize(tmp_path, cmap="virdis").proccess_each_feature_map(4, random_maps())
    assert list(tmp_path.iterdir()) == []


def test_threads_under_any_style(tmp_path):
    """Two threads draw; pages and the process's settings stay as they are."""
    maps = {f"layer{number}": random_maps(7, 30, seed=number) for number in range(6)}
    expected = Visualize(tmp_path, "layer").show_each_feature_map(maps)
    expected = [path.read_bytes() for path in expected]
    with matplotlib.rc_context():
        matplotlib.style.use("dark_background")
        before = dict(matplotlib.rcParams)
        draw_text.cache_clear()
        with ThreadPoolExecutor(2) as threads:
            folders = [tmp_path / str(number) for number in range(4)]
            jobs = [
                threads.submit(Visualize(folder, "layer").show_each_feature_map, maps)
                for folder in folders
            ]
            while not all(job.done() for job in jobs):
                assert dict(matplotlib.rcParams) == before
        assert dict(matplotlib.rcParams) == before
        for job in jobs:
            assert [path.read_bytes() for path in job.result()] == expected


def test_a_users_matplotlib_style_changes_nothing(tmp_path):
    code = "import numpy; from Visualize import Visualize\n"
    code += "pages, fmap = Visualize('.', 'layer'), numpy.arange(80.0).reshape(1, 4, 4, 5)\n"
    code += "pages.show_each_feature_map({'a': fmap})"
    style = "figure.facecolor: black\ntext.color: white\nfont.family: monospace\nfigure.dpi: 30\n"
    style += "font.weight: bold\nimage.cmap: jet\nimage.lut: 16\ntext.usetex: True\n"
    for folder, text in ((tmp_path / "plain", ""), (tmp_path / "styled", style)):
        folder.mkdir()
        (folder / "matplotlibrc").write_text(text)
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, check=True)
    pages = [tmp_path / folder / "a.png" for folder in ("plain", "styled")]
    assert pages[0].read_bytes() == pages[1].read_bytes()


def test_a_failed_save_keeps_the_old_page(tmp_path, monkeypatch):
    def full_disk(self, path, *args, **options):
        Path(path).write_bytes(b"half a picture")
        raise OSError(28, "No space left on device")

    path = draw(tmp_path, random_maps())
    old = path.read_bytes()
    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OSError, match="No space left"):
        draw(tmp_path, random_maps(seed=1))
    assert path.read_bytes() == old
