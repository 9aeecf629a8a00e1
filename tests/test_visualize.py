"""The pictures, read back from their PNGs, show each activation at the place they name."""

import math

import matplotlib
import numpy as np
import pytest
from conftest import SAMPLE
from matplotlib.figure import Figure
from PIL import Image
from test_model import LAYERS

import Visualize as module
from Visualize import Visualize


def random_maps(side=7, channels=10, seed=0):
    """A layer whose channels differ in range and offset."""
    chance = np.random.default_rng(seed)
    fmap = chance.normal(size=(1, side, side, channels)) * chance.uniform(0.1, 9, channels)
    return (fmap + chance.normal(size=channels)).astype(np.float32)


def tiles(path, square, height, width, channels):
    """Read the channels back: arrays (H, W) or (H, W, 3), each from its tile's k×k blocks."""
    picture = Image.open(path)
    dpi = round(picture.info["dpi"][0])
    left, top = round(module.LEFT * dpi), round(module.TOP * dpi)
    pixels = np.asarray(picture)[top:, left:]
    edges = np.flatnonzero((pixels[0] == module.SHADES[1]).reshape(len(pixels[0]), -1).all(1))
    pitch = edges.max() // square  # the top line spans the whole width
    k, rest = divmod(pitch - module.GAP, width)
    assert k >= 1
    assert rest == 0
    for channel in range(channels):
        row, column = divmod(channel, square)
        y, x = row * (k * height + module.GAP) + 2, column * pitch + 2
        tile = pixels[y : y + k * height, x : x + k * width]
        blocks = tile.reshape(height, k, width, k, -1)
        assert (blocks == blocks[:, :1, :, :1]).all(), "not a block of one colour"
        yield blocks[:, 0, :, 0].squeeze(-1) if tile.ndim == 2 else blocks[:, 0, :, 0]


def over_own_range(channel):
    low, high = float(channel.min()), float(channel.max())
    return (channel.astype(float) - low) / (high - low) * 255


@pytest.mark.parametrize(("layer", "side", "channels"), LAYERS)
def test_every_activation_is_in_the_picture(tmp_path, layer, side, channels):
    fmap = random_maps(side, channels)
    square = math.ceil(math.sqrt(channels))
    visualize = Visualize(tmp_path)
    _, visualize.layer_type, number = layer.split("_")
    visualize.layer_num = int(number)
    path = visualize.proccess_each_feature_map(square, fmap)
    assert path == tmp_path / f"{layer}.png"
    assert all(900 <= pixels <= 1500 for pixels in Image.open(path).size)
    shown = tiles(path, square, side, side, channels)
    for channel, tile in enumerate(shown):
        expected = over_own_range(fmap[0, :, :, channel])
        np.testing.assert_allclose(tile, expected, atol=0.501, err_msg=f"channel {channel}")


def test_the_real_maps(tmp_path, pretrained):
    fmap = pretrained.get_feature_map(SAMPLE)[1]
    visualize = Visualize(tmp_path)
    path = visualize.proccess_each_feature_map(8, fmap)
    spread = np.ptp(fmap[0], axis=(0, 1))
    flat = np.flatnonzero(spread < 1e-6 * spread.max())
    assert len(flat) == 2  # and constant only up to rounding
    assert spread[flat].all()
    picture = Image.open(path)
    assert picture.text["Title"] == "conv_dw_1 · 64 channels of 112×112 · 2 flat"
    shown = list(tiles(path, 8, 112, 112, 64))
    for channel in set(range(64)) - set(flat):
        expected = over_own_range(fmap[0, :, :, channel])
        np.testing.assert_allclose(shown[channel], expected, atol=0.501)


def test_rulers_stand_at_the_tiles_they_name(tmp_path, monkeypatch):
    labels = []

    def text(self, x, y, string, **options):
        labels.append((string, options.get("ha", ""), x, y))
        return original(self, x, y, string, **options)

    original = Figure.text
    monkeypatch.setattr(Figure, "text", text)
    module._page.cache_clear()
    path = Visualize(tmp_path).proccess_each_feature_map(12, random_maps(9, 130))
    picture = Image.open(path)
    dpi = round(picture.info["dpi"][0])
    pitch = (np.asarray(picture)[round(module.TOP * dpi)] == module.SHADES[1]).nonzero()[0][-1]
    pitch = (pitch - round(module.LEFT * dpi)) / 12
    columns = [(int(string), x) for string, align, x, _ in labels if align == "center"]
    rows = [(int(string), y) for string, align, _, y in labels if align == "right"]
    assert [number for number, _ in columns] == list(range(12))
    assert [number for number, _ in rows] == list(range(0, 130, 12))
    for index, x in columns:
        assert x * dpi == pytest.approx(module.LEFT * dpi + (index + 0.5) * pitch, abs=1)
    for number, y in rows:
        middle = module.TOP * dpi + (number // 12 + 0.5) * pitch
        assert (10 - y) * dpi == pytest.approx(middle, abs=1)


def test_rectangular_maps(tmp_path):
    fmap = np.random.default_rng(1).normal(size=(1, 6, 11, 5)).astype(np.float32)
    path = Visualize(tmp_path).proccess_each_feature_map(3, fmap)
    for channel, tile in enumerate(tiles(path, 3, 6, 11, 5)):
        np.testing.assert_allclose(tile, over_own_range(fmap[0, :, :, channel]), atol=0.501)


def test_two_swapped_channels_change_the_picture(tmp_path):
    fmap = random_maps()
    visualize = Visualize(tmp_path)
    before = Image.open(visualize.proccess_each_feature_map(4, fmap)).tobytes()
    after = Image.open(visualize.proccess_each_feature_map(4, fmap[..., [0, 2, 1, *range(3, 10)]]))
    assert before != after.tobytes()


def test_spare_cells_are_paper(tmp_path):
    path = Visualize(tmp_path).proccess_each_feature_map(4, random_maps(channels=5))
    pixels = np.asarray(Image.open(path))
    dpi = len(pixels) / 10
    left, top, bottom = (round(x * dpi) for x in (module.LEFT, module.TOP, 10 - module.BOTTOM))
    pitch = (np.flatnonzero(pixels[top] == module.SHADES[1])[-1] - left) // 4
    assert (pixels[top + pitch + 1 : bottom, left + pitch + 1 :] == 255).all()
    assert (pixels[top + 2 * pitch + 1 : bottom, left:] == 255).all()
    assert (pixels[top : top + pitch, left] == module.SHADES[1]).all()  # frames of the tiles
    assert (pixels[top : top + 2 * pitch, left + pitch] == module.SHADES[1]).all()


@pytest.mark.parametrize("scale", ["channel", "layer"])
def test_flat_channels_are_crossed_out(tmp_path, scale):
    fmap = random_maps()
    fmap *= 5 / np.ptp(fmap, axis=(0, 1, 2)).max()
    wave = np.linspace(0, 1, 49, dtype=np.float32).reshape(7, 7)
    for channel, height in ((1, 1e-12), (2, 4e-6), (3, 6e-6), (4, 1)):
        fmap[0, :, :, channel] = height * wave
    fmap[..., 6] = 3  # constant
    visualize = Visualize(tmp_path, scale=scale, cmap="gray")
    picture = Image.open(visualize.proccess_each_feature_map(4, fmap))
    assert picture.text["Title"].endswith("10 channels of 7×7 · 3 flat")
    pixels = np.asarray(picture)
    dpi = round(picture.info["dpi"][0])
    left, top = round(module.LEFT * dpi), round(module.TOP * dpi)
    pitch = (np.flatnonzero(pixels[top] == module.SHADES[1])[-1] - left) // 4
    for channel in range(10):
        row, column = divmod(channel, 4)
        y, x = top + row * pitch + 2, left + column * pitch + 2
        tile = pixels[y : y + pitch - 3, x : x + pitch - 3]
        diagonal = np.diagonal(tile)[1:-1]
        crossed = (diagonal == module.SHADES[2]).all() and (tile == 255).mean() > 0.9
        assert crossed == (channel in (1, 2, 6)), channel


def test_a_layer_that_is_all_flat(tmp_path):
    for scale in ("channel", "layer"):
        visualize = Visualize(tmp_path, scale=scale)
        path = visualize.proccess_each_feature_map(2, np.zeros((1, 3, 3, 4), np.float32))
        assert Image.open(path).text["Title"].endswith("· 4 flat")


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e308])
def test_values_that_are_not_finite(tmp_path, value):
    fmap = random_maps().astype(np.float64)
    fmap[0, 2, 3, 8] = value
    fmap[0, 3, 3, 8] = -1e308
    with pytest.raises(ValueError, match="conv_dw_1, channel 8"):
        Visualize(tmp_path).proccess_each_feature_map(4, fmap)
    assert list(tmp_path.iterdir()) == []


def test_layer_scale_is_symmetric_about_zero(tmp_path):
    fmap = random_maps()
    fmap[0, 0, 0, :] = 0
    path = Visualize(tmp_path, scale="layer").proccess_each_feature_map(4, fmap)
    colormap = matplotlib.colormaps["coolwarm"]
    bound = np.abs(fmap).max()
    for channel, tile in enumerate(tiles(path, 4, 7, 7, 10)):
        np.testing.assert_array_equal(tile[0, 0], np.rint(np.multiply(colormap(0.5)[:3], 255)))
        levels = np.rint((fmap[0, :, :, channel].astype(float) / bound + 1) / 2 * 255)
        np.testing.assert_array_equal(tile, np.rint(colormap(levels / 255)[..., :3] * 255))


def test_colourbar(tmp_path, monkeypatch):
    labels = []

    def text(self, x, y, string, **options):
        labels.append((x, string))
        return original(self, x, y, string, **options)

    original = Figure.text
    monkeypatch.setattr(Figure, "text", text)
    fmap = random_maps()
    fmap[0, 0, 0, 0] = -77.25
    path = Visualize(tmp_path, scale="layer", cmap="viridis").proccess_each_feature_map(4, fmap)
    pixels = np.asarray(Image.open(path))
    dpi = len(pixels) / 10
    ends = round((10 - module.RIGHT - module.BAR) * dpi), round((10 - module.RIGHT) * dpi)
    row = pixels[round(0.12 * dpi), ends[0] + 2 : ends[1] - 2]
    expected = matplotlib.colormaps["viridis"](np.linspace(0, 1, len(row)))[:, :3] * 255
    np.testing.assert_allclose(row, expected, atol=6)
    bar = [label for _, label in sorted(labels) if label in ("−77.2", "0", "77.2")]
    assert bar[-3:] == ["−77.2", "0", "77.2"]


def test_any_colormap(tmp_path):
    fmap = random_maps()
    path = Visualize(tmp_path, cmap="viridis").proccess_each_feature_map(4, fmap)
    for channel, tile in enumerate(tiles(path, 4, 7, 7, 10)):
        levels = np.rint(over_own_range(fmap[0, :, :, channel]))
        expected = matplotlib.colormaps["viridis"](levels / 255)[..., :3] * 255
        np.testing.assert_array_equal(tile, np.rint(expected))


def test_metadata(tmp_path):
    fmap = random_maps()
    visualize = Visualize(tmp_path, source="Vögel \udcff 鳥.jpg", weights=None, scale="layer")
    text = Image.open(visualize.proccess_each_feature_map(4, fmap)).text
    assert text["Title"] == "conv_dw_1 · 10 channels of 7×7 · 0 flat · untrained weights"
    assert text["Source"] == "Vögel ? 鳥.jpg"
    description = dict(line.split(": ", 1) for line in text["Description"].split("\n"))
    assert description["layer"] == "conv_dw_1"
    assert description["shape"] == "(1, 7, 7, 10)"
    low, high = description["activations"].split(" to ")
    assert (np.float32(low), np.float32(high)) == (fmap.min(), fmap.max())
    assert description["scale"].startswith("layer")
    assert description["colormap"] == "coolwarm"
    assert description["weights"] == "none (untrained)"
    assert f"matplotlib {matplotlib.__version__}" in text["Software"]


def test_all_layers_in_order_twice(tmp_path):
    visualize = Visualize(tmp_path / "new" / "folder")
    maps = [random_maps(3, 2, seed) for seed in range(26)]
    names = [f"{name}.png" for name, _, _ in LAYERS]
    for _ in range(2):
        paths = visualize.show_each_feature_map(maps)
        assert [path.name for path in paths] == names
        assert {path.name for path in (tmp_path / "new" / "folder").iterdir()} == set(names)
        for fmap, path in zip(maps, paths, strict=True):
            assert Image.open(path).text["Title"].startswith(path.stem)
            for channel, tile in enumerate(tiles(path, 2, 3, 3, 2)):
                np.testing.assert_allclose(tile, over_own_range(fmap[0, :, :, channel]), atol=0.501)


def test_a_users_matplotlib_style_changes_nothing(tmp_path):
    plain = Visualize(tmp_path).proccess_each_feature_map(4, random_maps()).read_bytes()
    module._page.cache_clear()
    style = {"figure.facecolor": "black", "text.color": "white", "font.family": "cursive"}
    with matplotlib.rc_context({**style, "savefig.bbox": "tight", "figure.dpi": 30}):
        styled = Visualize(tmp_path).proccess_each_feature_map(4, random_maps()).read_bytes()
    assert styled == plain


def test_a_failed_save_keeps_the_old_picture(tmp_path, monkeypatch):
    visualize = Visualize(tmp_path)
    path = visualize.proccess_each_feature_map(4, random_maps())
    old = path.read_bytes()

    def full_disk(self, file, *args, **options):
        file.write(b"half a picture")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    for draw in (
        lambda: visualize.proccess_each_feature_map(4, random_maps(seed=1)),
        lambda: visualize.show_each_feature_map([random_maps(seed=1)] * 9),
    ):
        with pytest.raises(OSError, match=r"conv_dw_1\.png.*No space left"):
            draw()
        assert [file.name for file in tmp_path.iterdir()] == ["conv_dw_1.png"]
        assert path.read_bytes() == old


def test_a_file_in_the_folders_place(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OSError, match="its folder is a file"):
        Visualize(tmp_path / "file").proccess_each_feature_map(4, random_maps())
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"cmap": "virdis"}, "unknown colormap 'virdis': did you mean viridis"),
        ({"scale": "picture"}, "unknown scale 'picture': choose from channel, layer"),
        ({"cmap": ""}, "unknown colormap ''"),
        ({"figsize": (8, 8)}, "no room for the title"),
    ],
)
def test_settings_that_make_no_sense(options, message):
    with pytest.raises(ValueError, match=message):
        Visualize(**options)


@pytest.mark.parametrize(
    ("square", "shape", "message"),
    [
        (3, (1, 7, 7, 10), "10 channels are too many for 3×3"),
        (4, (7, 7, 10), r"must be \(1, H, W, C\), not \(7, 7, 10\)"),
        (4, (2, 7, 7, 10), "must be"),
        (4, (1, 7, 7, 0), "must be"),
        (-4, (1, 7, 7, 10), "too many"),
    ],
)
def test_arrays_that_are_no_layer(tmp_path, square, shape, message):
    with pytest.raises(ValueError, match=message):
        Visualize(tmp_path).proccess_each_feature_map(square, np.zeros(shape))
