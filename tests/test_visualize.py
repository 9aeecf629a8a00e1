"""The pictures, read back from their PNGs, show each value at the place they name."""

import math
import os
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from conftest import ROOT, described, tiles
from PIL import Image
from test_model import LAYERS

from Visualize import Visualize


def random_maps(height=7, channels=10, seed=0, width=None):
    """A layer whose channels differ in range and offset."""
    chance = np.random.default_rng(seed)
    fmap = chance.normal(size=(1, height, width or height, channels))
    fmap *= chance.uniform(0.1, 9, channels)
    return (fmap + chance.normal(size=channels)).astype(np.float32)


def draw(folder, fmap, square=4, name="layer", **options):
    return Visualize(folder, **options).proccess_each_feature_map(square, fmap, name)


def assert_levels(tile, values, low, high):
    exact = (values.astype(float) - low) / (high - low) * 238
    np.testing.assert_allclose(tile, np.clip(exact, 0, 238), rtol=0, atol=0.501)


def assert_own_ranges(path, fmap):
    for channel, tile in enumerate(tiles(path, fmap.shape[-1])):
        values = fmap[0, :, :, channel]
        assert_levels(tile, values, float(values.min()), float(values.max()))


def crossed(tile):
    return bool((np.diagonal(tile) == 245).all() and (tile == 255).mean() > 0.8)


@pytest.mark.parametrize(("layer", "side", "channels"), LAYERS)
def test_every_value_is_in_the_picture(tmp_path, layer, side, channels):
    fmap = random_maps(side, channels)
    path = draw(tmp_path, fmap, math.ceil(math.sqrt(channels)), layer)
    assert path == tmp_path / f"{layer}.png"
    assert all(900 <= pixels <= 1550 for pixels in Image.open(path).size)
    assert_own_ranges(path, fmap)


@pytest.mark.parametrize("shape", [(6, 11), (11, 6), (1, 300), (300, 1), (900, 2)])
def test_rectangular_maps(tmp_path, shape):
    fmap = random_maps(shape[0], 5, width=shape[1])
    for scale in ("channel", "layer"):
        path = draw(tmp_path, fmap, scale=scale)
        assert Image.open(path).width >= 900  # so that the title has room
    assert_own_ranges(draw(tmp_path, fmap), fmap)


def test_spare_cells_are_paper(tmp_path):
    shown = list(tiles(draw(tmp_path, random_maps(channels=5)), 8))
    assert all((tile == 255).all() for tile in shown[5:])


@pytest.mark.parametrize("scale", ["channel", "layer"])
@pytest.mark.parametrize("side", [7, 56])
def test_flat_channels_are_crossed_out(tmp_path, scale, side):
    fmap = random_maps(side)
    fmap *= 5 / np.ptp(fmap, axis=(0, 1, 2)).max()
    wave = np.linspace(0, 1, side**2, dtype=np.float32).reshape(side, side)
    for channel, height in ((1, 1e-12), (2, 4e-6), (3, 6e-6), (4, 1)):
        fmap[0, :, :, channel] = height * wave
    fmap[..., 6] = 3  # constant
    path = draw(tmp_path, fmap, scale=scale)
    assert Image.open(path).text["Title"].endswith(f"10 channels of {side}×{side} · 3 flat")
    found = [c for c, tile in enumerate(tiles(path, 10, block=False)) if crossed(tile)]
    assert found == [1, 2, 6]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("options", [{}, {"scale": "layer"}, {"scale": "layer", "after": "relu"}])
def test_a_layer_that_is_all_flat(tmp_path, options):
    path = draw(tmp_path, np.full((1, 3, 3, 4), 2.5), 2, **options)
    assert "4 flat" in Image.open(path).text["Title"]
    assert all(map(crossed, tiles(path, 4, block=False)))


@pytest.mark.parametrize("after", ["conv", "bn"])
def test_one_signed_scale_for_a_layer(tmp_path, after):
    fmap = random_maps(20)
    fmap[0, 0, 0] = 0
    fmap[..., 4] = 1000  # flat, so it has no part in the bound
    fmap[0, 5, 5, 0], fmap[0, 6, 6, 0] = 200, -200
    path = draw(tmp_path, fmap, scale="layer", after=after)
    live = [channel for channel in range(10) if channel != 4]
    bound = np.percentile(np.abs(fmap[..., live].astype(float)), 99)
    assert described(path)["scale"] == f"layer, {-bound:.6g} to {bound:.6g}, coolwarm"
    assert described(path)["values"].endswith(", -200 to 1000")
    shown = list(tiles(path, 10, block=False))
    assert crossed(shown[4])
    shown = [tile[:: len(tile) // 20, :: len(tile) // 20] for tile in shown]
    assert (shown[0][5, 5], shown[0][6, 6]) == (238, 0)
    for channel in live:
        assert shown[channel][0, 0] == 119
        assert_levels(shown[channel], fmap[0, :, :, channel], -bound, bound)


def test_one_scale_after_relu(tmp_path):
    fmap = np.clip(np.abs(random_maps()), 0, 6)
    path = draw(tmp_path, fmap, scale="layer", after="relu")
    assert described(path)["scale"] == "layer, 0 to 6, viridis"
    for channel, tile in enumerate(tiles(path, 10)):
        assert_levels(tile, fmap[0, :, :, channel], 0, 6)


@pytest.mark.parametrize(("beyond", "after"), [(True, "conv"), (False, "relu")])
def test_a_colourbar_is_pointed_if_values_lie_beyond(tmp_path, beyond, after):
    fmap = random_maps() if beyond else np.clip(random_maps(), 0, 6)
    pixels = np.asarray(Image.open(draw(tmp_path, fmap, scale="layer", after=after)))
    bar = pixels[-45:-30, -285:-45]
    assert (bar[7] == np.rint(np.linspace(0, 238, 240))).all()
    assert ((bar[0] == 255).sum() >= 14) == beyond
    assert (np.asarray(Image.open(draw(tmp_path, fmap)))[-75:, -330:] == 255).all()


@pytest.mark.parametrize(
    ("options", "cmap"),
    [
        ({}, "gray"),
        ({"after": "relu"}, "gray"),
        ({"scale": "layer", "after": "bn"}, "coolwarm"),
        ({"cmap": "magma"}, "magma"),
        ({"cmap": "tab10", "scale": "layer"}, "tab10"),
    ],
)
def test_colours(tmp_path, options, cmap):
    path = draw(tmp_path, random_maps(), **options)
    assert described(path)["scale"].endswith(f", {cmap}")
    palette = np.reshape(Image.open(path).getpalette("RGB"), (-1, 3))
    expected = matplotlib.colormaps[cmap](np.linspace(0, 1, 239))[:, :3] * 255
    np.testing.assert_allclose(palette[:239], expected, atol=0.501)
    assert (np.diff(palette[239:256], axis=0) > 0).all()
    assert (palette[239].tolist(), palette[255].tolist()) == ([0, 0, 0], [255, 255, 255])


def test_metadata(tmp_path):
    fmap = random_maps(channels=200)
    origin = {"source": "Vögel \udcff 鳥.jpg", "weights": None}
    path = draw(tmp_path, fmap, 15, after="bn", **origin)
    text = Image.open(path).text
    title = "layer · batch-normalised · 200 channels of 7×7 · 0 flat · untrained weights"
    assert (text["Title"], text["Source"]) == (title, "Vögel ? 鳥.jpg")
    assert described(path)["values"] == f"batch-normalised, {fmap.min():.6g} to {fmap.max():.6g}"
    assert described(path)["weights"] == "none (untrained)"
    lowest, highest = fmap.min(axis=(0, 1, 2)), fmap.max(axis=(0, 1, 2))
    assert text["Channel ranges"].split("\n") == [
        f"{low:.6g} {high:.6g}" for low, high in zip(lowest, highest, strict=True)
    ]
    assert f"matplotlib {matplotlib.__version__}" in text["Software"]
    assert f"numpy {np.__version__}" in text["Software"]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("source", ["a\nb\x1b[2J\x00.jpg", "鳥.jpg", "n" * 300, "$x$_%.jpg", ""])
def test_odd_source_names(tmp_path, source):
    fmap = random_maps()
    path = draw(tmp_path, fmap, source=source)
    assert Image.open(path).text["Source"].startswith(source[:3])
    assert_own_ranges(path, fmap)


def test_a_list_of_26_or_a_mapping(tmp_path):
    maps = [random_maps(3, 2, seed) for seed in range(26)]
    named = {"mine": random_maps(channels=17), "conv_dw_2": random_maps()}
    for given, names in ((maps, [name for name, _, _ in LAYERS]), (named, list(named))):
        folder = tmp_path / "new" / names[0]
        for _ in range(2):
            paths = Visualize(folder).show_each_feature_map(given)
            assert paths == [folder / f"{name}.png" for name in names]
            assert set(folder.iterdir()) == set(paths)
        for fmap, path in zip(given if given is maps else named.values(), paths, strict=True):
            assert Image.open(path).text["Title"].startswith(path.stem)
            assert_own_ranges(path, fmap)


@pytest.mark.parametrize("maps", [[], [np.ones((1, 2, 2, 2))] * 25, np.ones((26, 1, 2, 2, 2)), 3])
def test_no_list_of_26(tmp_path, maps):
    with pytest.raises(ValueError, match="26 arrays in a list or a mapping"):
        Visualize(tmp_path).show_each_feature_map(maps)


@pytest.mark.parametrize("name", ["a/b", "..", ".", "", "/a", "a/", "../a", "./a", 0])
def test_names_that_are_no_file_names(tmp_path, name):
    visualize = Visualize(tmp_path / "in" / "side")
    for show in (
        lambda: visualize.show_each_feature_map({name: random_maps()}),
        lambda: visualize.proccess_each_feature_map(4, random_maps(), name),
    ):
        with pytest.raises(ValueError, match="cannot be the name"):
            show()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("square", "shape"),
    [
        (3, (1, 7, 7, 10)),
        (4, (7, 7, 10)),
        (4, (2, 7, 7, 10)),
        (4, (1, 7, 7, 0)),
        (0, (1, 7, 7, 1)),
        (-4, (1, 7, 7, 10)),
        (4, ()),
    ],
)
def test_arrays_that_are_no_layer(tmp_path, square, shape):
    with pytest.raises(ValueError, match="conv_dw_1: expected"):
        draw(tmp_path, np.zeros(shape), square, "conv_dw_1")
    with pytest.raises(ValueError, match=r"conv_dw_1: .* not finite"):
        draw(tmp_path, np.full((1, 2, 2, 4), np.inf), 2, "conv_dw_1")
    assert list(tmp_path.iterdir()) == []


def test_a_users_matplotlib_style_changes_nothing(tmp_path):
    code = "import numpy; from Visualize import Visualize; Visualize('.', scale='layer')"
    code += ".proccess_each_feature_map(3, numpy.arange(80.0).reshape(1, 4, 4, 5), 'a')"
    style = "figure.facecolor: black\ntext.color: white\nfont.family: monospace\nfigure.dpi: 30\n"
    style += "font.weight: bold\nimage.cmap: jet\ntext.usetex: True\n"
    for folder, text in (("plain", ""), ("styled", style)):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "matplotlibrc").write_text(text)
        command, environment = [sys.executable, "-c", code], os.environ | {"PYTHONPATH": str(ROOT)}
        subprocess.run(command, cwd=tmp_path / folder, env=environment, check=True)
    plain, styled = (Image.open(tmp_path / folder / "a.png") for folder in ("plain", "styled"))
    assert plain.getpalette() == styled.getpalette()
    np.testing.assert_array_equal(plain, styled)


def test_a_failed_save_keeps_the_old_picture(tmp_path, monkeypatch):
    path = draw(tmp_path, random_maps())
    old = path.read_bytes()

    def full_disk(self, file, *args, **options):
        if hasattr(file, "write"):
            file.write(b"half a picture")
        else:
            Path(file).write_bytes(b"half a picture")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full_disk)
    with pytest.raises(OSError, match=r"cannot write '.*layer\.png': No space left"):
        draw(tmp_path, random_maps(seed=1))
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == old


@pytest.mark.parametrize("options", [{"cmap": "virdis"}, {"scale": "picture"}, {"after": "end"}])
def test_settings_that_make_no_sense(options):
    (choice,) = options.values()
    with pytest.raises(ValueError, match=repr(choice)):
        Visualize(**options)
