"""The pages, read back from their PNGs, show each value at the place they name."""

import math
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import matplotlib
import matplotlib.style
import numpy as np
import pytest
from conftest import INK, LAST_LEVEL, PAPER, ROOT, SIZES, described, tiles
from PIL import Image

from Model import LAYERS
from Visualize import Visualize, draw_text


def random_maps(height=7, channels=10, seed=0, width=None):
    """A layer whose channels differ in range and offset."""
    chance = np.random.default_rng(seed)
    fmap = chance.normal(size=(1, height, width or height, channels))
    fmap *= chance.uniform(0.1, 9, channels)
    return (fmap + chance.normal(size=channels)).astype(np.float32)


def draw(folder, fmap, square=4, name="layer", labels=(), **options):
    return Visualize(folder, **options).proccess_each_feature_map(square, fmap, name, labels)


def assert_levels(path, fmap, ends):
    """Check each tile against its channel, whose first and last level stand for its `ends`."""
    drawn = list(tiles(path))
    assert len(drawn) == len(ends) == fmap.shape[3]
    for values, tile, (low, high) in zip(np.moveaxis(fmap[0], 2, 0), drawn, ends):
        levels = ((values - low) / (high - low) * LAST_LEVEL).clip(0, LAST_LEVEL)
        zoom = len(tile) // len(values)
        np.testing.assert_allclose(tile, np.kron(levels, np.ones((zoom, zoom))), rtol=0, atol=0.501)


def assert_own_ranges(path, fmap):
    channels = np.moveaxis(fmap[0], 2, 0).astype(float)
    assert_levels(path, fmap, [(channel.min(), channel.max()) for channel in channels])


def assert_one_scale(path, fmap, low, high):
    assert_levels(path, fmap, [(low, high)] * fmap.shape[-1])


def is_crossed(tile):
    return set(np.unique(tile)) == {INK, PAPER} and (np.diagonal(tile) == INK).all()


def text_of(path):
    with Image.open(path) as page:
        return page.text


def test_an_example_to_check_by_eye(tmp_path):
    fmap = np.zeros((1, 2, 2, 2))
    fmap[0, :, :, 0] = [[0, 1], [2, 4]]
    fmap[0, :, :, 1] = [[-10, 10], [5, 0]]
    path = draw(tmp_path, fmap, square=2)
    one_pixel_a_value = [tile[:: len(tile) // 2, :: len(tile) // 2] for tile in tiles(path)]
    np.testing.assert_array_equal(one_pixel_a_value[0], [[0, 60], [119, 238]])
    np.testing.assert_array_equal(one_pixel_a_value[1], [[0, 238], [178, 119]])


@pytest.mark.parametrize(("layer", "size"), list(zip(LAYERS, SIZES)))
def test_every_value_is_on_the_page(tmp_path, layer, size):
    fmap = random_maps(*size)
    (path,) = Visualize(tmp_path).show_each_feature_map({layer: fmap})
    assert path == tmp_path / f"{layer}.png"
    assert_own_ranges(path, fmap)
    columns = math.ceil(math.sqrt(size[1]))
    zoom = max(1, (1394 // columns - 3) // size[0])
    assert described(path)["tiles"].startswith(f"{columns} in a row, {zoom}×{zoom} pixels per")
    with Image.open(path) as page:
        assert page.width <= 1500
        assert page.info["dpi"] == pytest.approx((150, 150), abs=0.1)


@pytest.mark.parametrize("shape", [(6, 11), (11, 6), (1, 300), (300, 1), (900, 2)])
def test_rectangular_maps_and_spare_places(tmp_path, shape):
    fmap = random_maps(shape[0], 5, width=shape[1])
    for scale in ("layer", "channel"):
        path = draw(tmp_path, fmap, scale=scale)
        assert all((tile == PAPER).all() for tile in list(tiles(path, spare=3))[5:])
    assert_own_ranges(path, fmap)


@pytest.mark.parametrize(("figsize", "zoom"), [((10, 10), 4), ((20, 20), 8), ((1, 1), 1)])
def test_figsize_is_the_size_of_the_blocks(tmp_path, figsize, zoom):
    path = draw(tmp_path, random_maps(28, 128), 12, figsize=figsize)
    assert described(path)["tiles"].startswith(f"12 in a row, {zoom}×{zoom} pixels per value")


def test_figsize_limits_rows_as_well_as_columns(tmp_path):
    path = draw(tmp_path, random_maps(28, 128), square=1)
    assert Image.open(path).height < 128 * (28 + 3) + 500
    assert_own_ranges(path, random_maps(28, 128))


def maps_with_flat_channels(side):
    """Ten channels, the widest range being 5, so that a range of at most 5e-6 is flat."""
    fmap = random_maps(side)
    fmap *= 5 / np.ptp(fmap, axis=(0, 1, 2)).max()
    wave = np.linspace(0, 1, side**2, dtype=np.float32).reshape(side, side, 1)
    fmap[0, :, :, 1:5] = wave * [1e-12, 4e-6, 6e-6, 1]
    fmap[..., 6] = 3  # constant
    return fmap


@pytest.mark.parametrize("side", [2, 7, 56])
def test_flat_channels_are_crossed_out_on_their_own_range(tmp_path, side):
    path = draw(tmp_path, maps_with_flat_channels(side))
    assert text_of(path)["Title"] == f"layer · 10 channels of {side}×{side}"
    crossed = [channel for channel, tile in enumerate(tiles(path)) if is_crossed(tile)]
    assert crossed == [1, 2, 6]
    assert "3 flat: crossed out" in described(path)["scale"]


def test_flat_channels_have_the_colour_of_their_value_on_one_scale(tmp_path):
    fmap = maps_with_flat_channels(7)
    path = draw(tmp_path, fmap, scale=(-4, 4))
    assert_one_scale(path, fmap, -4, 4)
    assert "crossed" not in described(path)["scale"]


@pytest.mark.filterwarnings("error")
def test_a_layer_that_is_all_flat(tmp_path):
    fmap = np.full((1, 3, 3, 4), 2.5)
    path = draw(tmp_path, fmap, 2)
    assert "4 flat" in described(path)["scale"]
    assert all(map(is_crossed, tiles(path)))
    assert_one_scale(draw(tmp_path, fmap, 2, scale="layer"), fmap, 0, 2.5)
    assert_one_scale(draw(tmp_path, fmap * 0, 2, scale="layer"), fmap * 0, 0, 1)


@pytest.mark.parametrize("tiny", [1e-30, 1e-34])
def test_tiny_values_use_all_levels(tmp_path, tiny):
    fmap = random_maps() * np.float32(tiny)
    assert_own_ranges(draw(tmp_path, fmap), fmap)


def test_one_signed_scale_for_a_layer(tmp_path):
    fmap = random_maps(20)
    fmap[0, 0, 0] = 0
    fmap[0, 5, 5, 0] = 200
    fmap[0, 6, 6, 0] = -200
    bound = np.percentile(np.abs(fmap.astype(float)), 99)
    path = draw(tmp_path, fmap, scale="layer")
    assert_one_scale(path, fmap, -bound, bound)
    assert described(path)["scale"].startswith("all tiles on one scale · 1% of the values beyond")
    flat = np.full((1, 20, 20, 1), 1000)  # does not change the ends
    path = draw(tmp_path, np.concatenate([fmap, flat], axis=3), scale="layer")
    low, high = map(float, described(path)["scale"].split(", ")[1].split(" to "))
    assert (low, high) == pytest.approx((-bound, bound), rel=1e-6)
    assert described(path)["range"] == "-200 to 1000"


def test_a_scale_from_zero_for_a_layer_without_negative_values(tmp_path):
    fmap = abs(random_maps(20))
    bound = np.percentile(fmap.astype(float), 99)
    path = draw(tmp_path, fmap, scale="layer")
    assert_one_scale(path, fmap, 0, bound)
    assert described(path)["colormap"] == "viridis"


def test_one_value_beyond_the_ends_is_told(tmp_path):
    fmap = np.zeros((1, 112, 112, 32))
    fmap[0, 5, 5, 5] = 7
    assert " · 0.000249% of the" in described(draw(tmp_path, fmap, 6, scale=(0, 6)))["scale"]


@pytest.mark.parametrize("highest", [6, 9])
def test_two_ends_as_a_scale(tmp_path, highest):
    fmap = abs(random_maps()).clip(0, highest)
    path = draw(tmp_path, fmap, scale=(0, 6))
    assert_one_scale(path, fmap, 0, 6)
    assert described(path)["scale"].endswith("0 to 6")
    assert ("beyond its ends" in described(path)["scale"]) == (highest > 6)


def test_a_colourbar_shows_all_levels_once(tmp_path):
    for scale, rows_of_colourbar in (("layer", 32), ("channel", 0)):
        page = np.asarray(Image.open(draw(tmp_path, random_maps(), scale=scale)))
        ramp = np.arange(LAST_LEVEL + 1, dtype=np.uint8).repeat(2)
        assert sum(ramp.tobytes() in row.tobytes() for row in page) == rows_of_colourbar


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
    assert described(path)["colormap"] == drawn
    palette = np.reshape(Image.open(path).getpalette("RGB"), (-1, 3))
    expected = matplotlib.colormaps[drawn].resampled(239)(range(239))[:, :3] * 255
    np.testing.assert_allclose(palette[:239], expected, atol=0.501)
    greys = np.linspace((0, 0, 0), (255, 255, 255), 17)
    np.testing.assert_allclose(palette[239:256], greys, atol=0.501)


def test_a_field_that_is_set_later_is_what_is_drawn(tmp_path):
    grids = Visualize(tmp_path / "first")
    grids.output_dir = tmp_path / "second"
    grids.scale = (0, 6)
    grids.cmap = "magma"
    grids.values = "numbers"
    path = grids.proccess_each_feature_map(4, random_maps())
    assert path == tmp_path / "second" / "conv_dw_1.png"
    assert described(path)["colormap"] == "magma"
    assert described(path)["values"] == "numbers"
    with pytest.raises(ValueError, match="virdis"):
        Visualize(cmap="virdis")


def test_names_without_a_name(tmp_path):
    grids = Visualize(tmp_path, layer_num=3, layer_type="pw")
    assert grids.proccess_each_feature_map(4, random_maps()).name == "conv_pw_3.png"
    assert grids.proccess_each_feature_map(4.0, random_maps()).name == "conv_pw_3.png"


def test_labels_stand_on_each_tile(tmp_path):
    fmap = random_maps(14, 3)
    path = draw(tmp_path, fmap, 2, labels=[447, "eyes", 51])
    assert text_of(path)["Labels"] == "447\neyes\n51"
    assert text_of(path)["Title"] == "layer · 3 tiles of 14×14"
    assert_own_ranges(path, fmap)
    others = draw(tmp_path, fmap, 2, "others", labels=[447, "ears", 51])
    assert (np.asarray(Image.open(path)) != np.asarray(Image.open(others))).any()
    chosen = {"a": random_maps(5, 600), "b": random_maps(7, 600)}
    for path in Visualize(tmp_path).show_each_feature_map(chosen, labels=range(600)):
        assert text_of(path)["Labels"].split("\n") == list(map(str, range(600)))
        assert_own_ranges(path, chosen[path.stem])
    with pytest.raises(ValueError, match="x: expected 3 labels, not 2"):
        draw(tmp_path, fmap, name="x", labels=["one", "two"])


def parts_of(path):
    """The pixels of a page, and where its tiles are."""
    numbers = re.findall(r"\d+", described(path)["tiles"])
    first_x, first_y, tile_width, tile_height = map(int, numbers[3:])
    return np.asarray(Image.open(path)), first_x, first_y, tile_width, tile_height


def label_above(path, place, columns=4):
    """The strip of paper above a tile, as far as the next tile."""
    page, first_x, first_y, tile_width, tile_height = parts_of(path)
    row, column = divmod(place, columns)
    top = first_y + row * tile_height - 1
    left = first_x + column * tile_width - 1
    return page[top - 32 : top, left : left + tile_width]


def inked(strip):
    """The part of a strip of paper on which something is written."""
    rows, columns = np.nonzero(strip < PAPER)
    return strip[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]


@pytest.mark.parametrize("label", ["0.87312347", "WWWWWWWW", "\u4e00" * 9, "i" * 99])
def test_a_long_label_is_cut_at_its_end_before_the_next_one(tmp_path, label):
    fmap = random_maps(8, 144)
    path = draw(tmp_path, fmap, 12, labels=[label] * 144)
    start = draw(tmp_path, fmap, 12, "start", labels=[label[:3]] * 144)
    strip = label_above(path, 0, columns=12)
    assert (strip[:, -8:] == PAPER).all()
    begins = inked(label_above(start, 0, columns=12))[:, :-3]
    np.testing.assert_array_equal(inked(strip)[-len(begins) :, : begins.shape[1]], begins)


def test_numbers_are_those_of_the_channels(tmp_path):
    fmap = random_maps(7, 16)  # 4 rows of 4 tiles
    path = draw(tmp_path, fmap)
    labelled = draw(tmp_path, fmap, name="labelled", labels=range(16))
    page, first_x, first_y, width, height = parts_of(path)
    for number in range(4):
        left = first_x + number * width
        over_column = page[first_y - 33 : first_y - 1, left : left + width]
        np.testing.assert_array_equal(inked(over_column), inked(label_above(labelled, number)))
        top = first_y + number * height
        beside_row = page[top : top + height, : first_x - 1]
        np.testing.assert_array_equal(inked(beside_row), inked(label_above(labelled, 4 * number)))


@pytest.mark.parametrize("channels", [10_000, 10_201])
def test_numbers_of_many_channels_are_whole(tmp_path, channels):
    fmap = random_maps(1, channels)
    columns = math.isqrt(channels)
    path = draw(tmp_path, fmap, columns)
    page, first_x, first_y, _, height = parts_of(path)
    rows = range(0, columns, math.ceil(32 / height))
    last = rows[-1] * columns
    label = draw(tmp_path, random_maps(99, 1), 1, "one", labels=[last])
    middle = first_y + rows[-1] * height + height // 2
    beside_row = page[middle - 16 : middle + 16, : first_x - 1]
    np.testing.assert_array_equal(inked(beside_row), inked(label_above(label, 0)))


def test_metadata_give_every_value_back(tmp_path):
    steps = np.arange(25, dtype=np.float32).reshape(1, 5, 5, 1)
    fmap = np.concatenate([1000.003 + steps * 4e-4, steps], axis=3).astype(np.float32)
    path = draw(tmp_path, fmap, 2, source="Vögel \udcff 鳥.jpg", values="3×3 kernels")
    text = text_of(path)
    assert text["Title"] == "layer · 3×3 kernels · 2 channels of 5×5"
    assert text["Source"] == "Vögel ? 鳥.jpg"
    assert described(path)["values"] == "3×3 kernels"
    assert f"matplotlib {matplotlib.__version__}" in described(path)["software"]
    for channel, line in enumerate(text["Channel ranges"].split("\n")):
        low, high = map(np.float32, line.split())
        assert (low, high) == (fmap[..., channel].min(), fmap[..., channel].max())


def test_what_is_not_told_is_not_claimed(tmp_path):
    text = text_of(draw(tmp_path, random_maps(channels=1), 1))
    assert text["Title"] == "layer · 1 channel of 7×7"
    assert "Source" not in text
    assert "convolution" not in "".join(text.values())


@pytest.mark.parametrize("source", ["a\nb\x1b[2J\x00鳥.jpg", "W" * 300, r"$\x$_%.jpg", Path("a/b")])
@pytest.mark.filterwarnings("error")
def test_odd_sources(tmp_path, source):
    fmap = random_maps()
    path = draw(tmp_path, fmap, source=source)
    assert text_of(path)["Source"].startswith(str(source)[:3])
    assert_own_ranges(path, fmap)


@pytest.mark.parametrize(
    "name", ["Bildschirmfoto um 9.41.07\u202fPM.png", "👩\u200d🔬.jpg", "é.png"]
)
def test_names_of_today_stay_as_they_are(tmp_path, name):
    path = draw(tmp_path, random_maps(), source=name)
    assert text_of(path)["Source"] == name
    other = draw(tmp_path, random_maps(), name="other", source=name.replace(name[-5], "\ufffd"))
    assert path.read_bytes() != other.read_bytes()


def test_a_sequence_of_26_or_a_mapping(tmp_path):
    maps = [random_maps(3, 2, seed) for seed in range(26)]
    named = dict(zip(LAYERS, maps))
    mapping = {"mine": random_maps(channels=17), "conv_dw_2": random_maps()}
    for given, arrays in ((maps, named), (tuple(maps), named), (mapping, mapping)):
        folder = tmp_path / "new" / type(given).__name__
        for _ in range(2):  # the second time, over the first one's files
            paths = Visualize(folder).show_each_feature_map(given)
            assert paths == [folder / f"{name}.png" for name in arrays]
            assert set(folder.iterdir()) == set(paths)
        for fmap, path in zip(arrays.values(), paths):
            assert_own_ranges(path, fmap)


def test_what_cannot_be_drawn(tmp_path):
    grids = Visualize(tmp_path / "in" / "side")
    fmap = random_maps()
    for maps in ([], [fmap] * 25, fmap):
        with pytest.raises(ValueError, match="expected the 26 arrays"):
            grids.show_each_feature_map(maps)
    for name in ("a/b", "/a", "a/", "./a"):
        with pytest.raises(ValueError, match="cannot be the name"):
            grids.show_each_feature_map({name: fmap})
    for shape in ((7, 7, 9), (2, 7, 7, 9), (), (1, 14, 14, 0), (1, 0, 7, 9)):
        with pytest.raises(ValueError, match="x: expected an array of shape"):
            grids.show_each_feature_map({"x": np.zeros(shape)})
    with pytest.raises(ValueError, match="x: some values are NaN or infinite"):
        grids.proccess_each_feature_map(4, fmap * np.inf, "x")
    assert list(tmp_path.iterdir()) == []


SENSELESS = ["picture", "06", ("0", "6"), (6, 0), (0, 0), (0, 1, 2), 3, None, (0, None)]
SENSELESS += [(0, math.inf), (math.nan, 1), np.array([1, 0]), np.array("layer", object), ["a", "b"]]


@pytest.mark.parametrize("scale", SENSELESS)
def test_a_scale_that_makes_no_sense(scale):
    with pytest.raises(ValueError, match="choose channel, layer or two ends"):
        Visualize(scale=scale)


@pytest.mark.parametrize("ends", [[0, 6], np.array([0, 6]), np.array([0, 6], np.uint8)])
def test_two_ends_of_any_kind(tmp_path, ends):
    fmap = random_maps()
    assert_one_scale(draw(tmp_path, fmap, scale=ends), fmap, 0, 6)


def test_every_layer_goes_through_proccess_each_feature_map(tmp_path):
    seen = []

    class Spy(Visualize):
        def proccess_each_feature_map(self, square, fmap, name=None, labels=()):
            seen.append((name, square))
            return super().proccess_each_feature_map(square, fmap, name, labels)

    maps = [random_maps(3, channels) for channels in range(1, 27)]
    paths = Spy(tmp_path).show_each_feature_map(maps)
    assert [path.stem for path in paths] == LAYERS
    squares = [math.ceil(math.sqrt(channels)) for channels in range(1, 27)]
    assert sorted(seen) == sorted(zip(LAYERS, squares))


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


def test_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert draw("~/pages", random_maps()) == tmp_path / "pages" / "layer.png"


def test_a_users_matplotlib_style_changes_nothing(tmp_path):
    code = "import numpy; from Visualize import Visualize\n"
    code += "grids, fmap = Visualize('.', 'layer'), numpy.arange(80.0).reshape(1, 4, 4, 5)\n"
    code += "grids.proccess_each_feature_map(3, fmap, 'a')\n"
    code += "grids.show_each_feature_map({'b': fmap})"
    style = "figure.facecolor: black\ntext.color: white\nfont.family: monospace\nfigure.dpi: 30\n"
    style += "font.weight: bold\nimage.cmap: jet\nimage.lut: 16\ntext.usetex: True\n"
    style += "text.hinting: none\ntext.antialiased: False\npath.sketch: 1, 100, 2\n"
    for folder, text in ((tmp_path / "plain", ""), (tmp_path / "styled", style)):
        folder.mkdir()
        (folder / "matplotlibrc").write_text(text)
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, check=True)
    for name in ("a.png", "b.png"):
        plain, styled = (Image.open(tmp_path / folder / name) for folder in ("plain", "styled"))
        assert plain.getpalette() == styled.getpalette()
        np.testing.assert_array_equal(plain, styled)


def test_a_failed_save_keeps_the_old_page(tmp_path, monkeypatch):
    def full_disk(self, path, **options):
        Path(path).write_bytes(b"half a picture")
        raise OSError(28, "No space left on device")

    path = draw(tmp_path, random_maps())
    old = path.read_bytes()
    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OSError, match=r"cannot write '.*layer\.png': No space left"):
        draw(tmp_path, random_maps(seed=1))
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == old
