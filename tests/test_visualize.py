"""The pictures, read back from their PNGs, show each value at the place they name."""

import math
import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from conftest import ROOT, SIZES, described, tiles
from PIL import Image

from Model import LAYERS, Simple_Model
from Visualize import Visualize


def random_maps(height=7, channels=10, seed=0, width=None):
    """A layer whose channels differ in range and offset."""
    chance = np.random.default_rng(seed)
    fmap = chance.normal(size=(1, height, width or height, channels))
    fmap *= chance.uniform(0.1, 9, channels)
    return (fmap + chance.normal(size=channels)).astype(np.float32)


def draw(folder, fmap, square=4, name="layer", **options):
    return Visualize(folder, **options).proccess_each_feature_map(square, fmap, name)


def assert_shown(path, fmap, low=None, high=None):
    """Check each tile against its channel, on one scale or over the channel's own range."""
    for values, tile in zip(np.moveaxis(fmap[0], 2, 0), tiles(path), strict=True):
        ends = np.array([values.min(), values.max()] if low is None else [low, high], float)
        levels = ((values - ends[0]) / (ends[1] - ends[0]) * 238).clip(0, 238)
        blocks = np.kron(levels, np.ones((len(tile) // len(values),) * 2))
        np.testing.assert_allclose(tile, blocks, rtol=0, atol=0.501)


def crossed(tile):
    return bool((np.diagonal(tile) == 245).all() and (tile == 255).mean() > 0.8)


@pytest.mark.parametrize(("layer", "size"), list(zip(LAYERS, SIZES, strict=True)))
def test_every_value_is_in_the_picture(tmp_path, layer, size):
    fmap = random_maps(*size)
    path = draw(tmp_path, fmap, math.ceil(math.sqrt(size[1])), layer)
    assert path == tmp_path / f"{layer}.png"
    assert all(1026 <= pixels <= 1550 for pixels in Image.open(path).size)
    assert_shown(path, fmap)


@pytest.mark.parametrize("shape", [(6, 11), (11, 6), (1, 300), (300, 1), (900, 2)])
def test_rectangular_maps_and_spare_cells(tmp_path, shape):
    fmap = random_maps(shape[0], 5, width=shape[1])
    for scale in ("layer", "channel"):
        path = draw(tmp_path, fmap, scale=scale)
        assert Image.open(path).width >= 1026  # so that the title has room
        assert all((tile == 255).all() for tile in list(tiles(path, spare=3))[5:])
    assert_shown(path, fmap)


@pytest.mark.parametrize("scale", ["channel", "layer"])
@pytest.mark.parametrize("side", [7, 56])
def test_flat_channels_are_crossed_out(tmp_path, scale, side):
    fmap = random_maps(side)
    fmap *= 5 / np.ptp(fmap, axis=(0, 1, 2)).max()
    wave = np.linspace(0, 1, side**2, dtype=np.float32).reshape(side, side, 1)
    fmap[0, :, :, 1:5] = wave * [1e-12, 4e-6, 6e-6, 1]
    fmap[..., 6] = 3  # constant
    path = draw(tmp_path, fmap, scale=scale)
    assert Image.open(path).text["Title"].endswith(f"10 channels of {side}×{side} · 3 flat")
    found = [c for c, tile in enumerate(tiles(path)) if crossed(tile)]
    assert found == [1, 2, 6]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("options", [{}, {"scale": "layer"}, {"scale": "layer", "after": "relu"}])
def test_a_layer_that_is_all_flat(tmp_path, options):
    path = draw(tmp_path, np.full((1, 3, 3, 4), 2.5), 2, **options)
    assert "4 flat" in Image.open(path).text["Title"]
    assert all(map(crossed, tiles(path)))


@pytest.mark.parametrize("after", ["conv", "bn"])
def test_one_signed_scale_for_a_layer(tmp_path, after):
    fmap = random_maps(20)
    fmap[0, 0, 0] = 0
    fmap[0, 5, 5, 0], fmap[0, 6, 6, 0] = 200, -200
    bound = np.percentile(np.abs(fmap.astype(float)), 99)
    path = draw(tmp_path, fmap, scale="layer", after=after)
    assert_shown(path, fmap, -bound, bound)
    fmap = np.concatenate([fmap, np.full((1, 20, 20, 1), 1000)], axis=3)  # has no part: it is flat
    path = draw(tmp_path, fmap, scale="layer", after=after)
    assert described(path)["scale"] == f"layer, {-bound:.6g} to {bound:.6g}, coolwarm"
    assert described(path)["values"].endswith(", -200 to 1000")


@pytest.mark.parametrize("beyond", [True, False])
def test_a_colourbar_is_pointed_if_values_lie_beyond(tmp_path, beyond):
    fmap = abs(random_maps()).clip(0, None if beyond else 6)
    path = draw(tmp_path, fmap, scale="layer", after="relu")
    assert described(path)["scale"] == "layer, 0 to 6, viridis"
    assert_shown(path, fmap, 0, 6)
    bar = np.asarray(Image.open(path))[-45:-30, -285:-45]
    assert (bar[7] == np.rint(np.linspace(0, 238, 240))).all()
    assert ((bar[0] == 255).sum() >= 14) == beyond


@pytest.mark.parametrize(("cmap", "after"), [(None, "conv"), (None, "relu"), ("tab10", "bn")])
def test_colours(tmp_path, cmap, after):
    path = draw(tmp_path, random_maps(), cmap=cmap, after=after)
    palette = np.reshape(Image.open(path).getpalette("RGB"), (-1, 3))
    expected = matplotlib.colormaps[cmap or "gray"](np.linspace(0, 1, 239))[:, :3] * 255
    np.testing.assert_allclose(palette[:239], expected, atol=0.501)
    greys = np.linspace((0, 0, 0), (255, 255, 255), 17)
    np.testing.assert_allclose(palette[239:256], greys, atol=0.501)
    assert (np.asarray(Image.open(path))[-75:, -330:] == 255).all()  # no colourbar


def test_metadata(tmp_path):
    fmap = random_maps(channels=200)
    origin = {"source": "Vögel \udcff 鳥.jpg", "weights": None}
    path = draw(tmp_path, fmap, 15, after="bn", **origin)
    text = Image.open(path).text
    title = "layer · batch-normalised · 200 channels of 7×7 · 0 flat · untrained weights"
    assert (text["Title"], text["Source"]) == (title, "Vögel ? 鳥.jpg")
    assert described(path) == {
        "values": f"batch-normalised, {fmap.min():.6g} to {fmap.max():.6g}",
        "scale": "channel, see Channel ranges, gray",
        "weights": "none (untrained)",
        "tiles": "15 in a row, 12×12 pixels per value",
    }
    ranges = [f"{channel.min():.6g} {channel.max():.6g}" for channel in np.moveaxis(fmap, 3, 0)]
    assert text["Channel ranges"].split("\n") == ranges
    for library in (matplotlib, np):
        assert f"{library.__name__} {library.__version__}" in text["Software"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("source", ["a\nb\x1b[2J\x00.jpg", "鳥.jpg", "n" * 300, r"$\x$_%.jpg", ""])
def test_odd_source_names(tmp_path, source):
    fmap = random_maps()
    path = draw(tmp_path, fmap, source=source)
    assert Image.open(path).text["Source"].startswith(source[:3])
    assert_shown(path, fmap)


def test_a_list_of_26_or_a_mapping(tmp_path):
    maps = [random_maps(3, 2, seed) for seed in range(26)]
    mapping = {"mine": random_maps(channels=17), "conv_dw_2": random_maps()}
    for given, named in ((maps, dict(zip(LAYERS, maps, strict=True))), (mapping, mapping)):
        folder = tmp_path / "new" / next(iter(named))
        for _ in range(2):  # the second time, over the first one's files
            paths = Visualize(folder).show_each_feature_map(given)
            assert paths == [folder / f"{name}.png" for name in named]
            assert set(folder.iterdir()) == set(paths)
        for fmap, path in zip(named.values(), paths, strict=True):
            assert Image.open(path).text["Title"].startswith(path.stem)
            assert_shown(path, fmap)


def test_what_cannot_be_drawn(tmp_path):
    grids, fmap = Visualize(tmp_path / "in" / "side"), random_maps()
    for maps in ([], [fmap] * 25, fmap, 3):
        with pytest.raises(ValueError, match="26 arrays in a list or a mapping"):
            grids.show_each_feature_map(maps)
    for name in ("a/b", "..", ".", "", "/a", "a/", "./a", 0):
        with pytest.raises(ValueError, match="cannot be the name"):
            grids.show_each_feature_map({name: fmap})
    for shape in ((1, 7, 7, 10), (7, 7, 9), (2, 7, 7, 9), (1, 7, 7, 0), ()):
        with pytest.raises(ValueError, match="x: expected"):
            grids.proccess_each_feature_map(3, np.zeros(shape), "x")
    with pytest.raises(ValueError, match="x: some values are not finite"):
        grids.proccess_each_feature_map(4, fmap * np.inf, "x")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("options", [{"cmap": "virdis"}, {"scale": "picture"}, {"after": "end"}])
def test_settings_that_make_no_sense(options):
    (choice,) = options.values()
    for kind in (Visualize, Simple_Model)[: 1 + ("after" in options)]:
        with pytest.raises(ValueError, match=repr(choice)):
            kind(**options)


def test_a_users_matplotlib_style_changes_nothing(tmp_path):
    code = "import numpy; from Visualize import Visualize; Visualize('.', scale='layer')"
    code += ".proccess_each_feature_map(3, numpy.arange(80.0).reshape(1, 4, 4, 5), 'a')"
    style = "figure.facecolor: black\ntext.color: white\nfont.family: monospace\nfigure.dpi: 30\n"
    style += "font.weight: bold\nimage.cmap: jet\ntext.usetex: True\n"
    for folder, text in ((tmp_path / "plain", ""), (tmp_path / "styled", style)):
        folder.mkdir()
        (folder / "matplotlibrc").write_text(text)
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, check=True)
    plain, styled = (Image.open(tmp_path / folder / "a.png") for folder in ("plain", "styled"))
    assert plain.getpalette() == styled.getpalette()
    np.testing.assert_array_equal(plain, styled)


def test_a_failed_save_keeps_the_old_picture(tmp_path, monkeypatch):
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
