"""`read_picture`: any picture, as a person sees it, at 224×224, or one clear error."""

import contextlib
import io
import os
import random
from pathlib import Path

import numpy as np
import pytest
from conftest import SAMPLE
from PIL import Image

from Model import open_picture, read_picture

RAMP = np.linspace(0, 1, 224 * 224).reshape(224, 224)  # of the size that comes out
RAMP8 = np.rint(RAMP * 255).astype(np.uint8)


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file


def grey(picture):
    pixels = np.asarray(picture)
    assert (picture.mode, picture.size) == ("RGB", (224, 224))
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


RAMP16, RAMP32 = RAMP8.astype(np.uint16) * 257, RAMP8.astype(np.int32) * 8_000_000


@pytest.mark.parametrize(
    ("image", "kind"),
    [
        *((Image.fromarray(RAMP8).convert(mode), "PNG") for mode in ("L", "LA", "RGB")),
        (Image.fromarray(RAMP8).convert("P"), "GIF"),
        *((Image.fromarray(RAMP16), kind) for kind in ("PNG", "PPM", "TIFF")),
        (Image.fromarray(RAMP16.astype(">u2")), "TIFF"),
        *((Image.fromarray(RAMP32 - offset), "TIFF") for offset in (0, 2**30)),
        (Image.fromarray((RAMP8 * 3.0).astype(np.float32)), "TIFF"),
        (Image.fromarray((RAMP * 1e-3 - 5).astype(np.float32)), "TIFF"),
        (Image.fromarray(RAMP.astype(np.float32)), "PPM"),  # a PFM
    ],
)
def test_grey_of_every_depth(image, kind):
    np.testing.assert_allclose(grey(read_picture(saved(image, kind))), RAMP8, atol=1)


def test_deep_grey_keeps_to_the_range_of_its_format():
    dark = Image.fromarray((RAMP8 * 25.7).astype(np.uint16))
    for kind in ("PNG", "PPM", "TIFF"):
        np.testing.assert_allclose(grey(read_picture(saved(dark, kind))), RAMP8 / 10, atol=1)


def test_floats_that_are_not_finite():
    values = RAMP.astype(np.float32)
    values[90, 3], values[91, 3], values[92, 3] = np.nan, np.inf, -np.inf
    pixels = grey(read_picture(saved(Image.fromarray(values), "TIFF")))
    assert (pixels[90, 3], pixels[91, 3], pixels[92, 3]) == (0, 255, 0)
    np.testing.assert_allclose(pixels[93:], RAMP8[93:], atol=1)


def test_one_bit_and_cmyk():
    pixels = grey(read_picture(saved(Image.fromarray(RAMP8 > 127), "PNG")))
    np.testing.assert_array_equal(pixels, (RAMP8 > 127) * 255)
    picture = read_picture(saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF"))
    assert picture.getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation):
    upright = Image.fromarray(RAMP8[:112])
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose, from upright to stored
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    expected = upright.resize((224, 224), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(grey(read_picture(saved(stored, "PNG", exif=exif))), expected)


@pytest.mark.parametrize("size", [(500, 331), (100, 300), (224, 224)])
def test_squeezed_with_the_bicubic_filter(size):
    image = Image.open(SAMPLE).resize(size)
    expected = image.resize((224, 224), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(read_picture(saved(image, "PNG")), expected)


def test_an_image_in_memory_stays_as_it_is():
    image = Image.open(SAMPLE).convert("RGBA")
    image.getexif()[0x0112] = 6
    before = image.tobytes()
    picture = read_picture(image)
    np.testing.assert_array_equal(read_picture(saved(image, "PNG", exif=image.getexif())), picture)
    assert (image.mode, image.tobytes(), image.getexif()[0x0112]) == ("RGBA", before, 6)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_transparency_is_over_white(kind):
    image = Image.new("RGBA", (224, 224), (255, 0, 0, 0))
    image.paste((0, 0, 0, 128), (0, 75, 224, 150))
    image.paste((10, 20, 30, 255), (0, 150, 224, 224))
    picture = read_picture(saved(image, kind, **({"lossless": True} if kind == "WEBP" else {})))
    pixels = np.asarray(picture)[[30, 110, 190], 100]
    np.testing.assert_allclose(pixels, [(255,) * 3, (127,) * 3, (10, 20, 30)], atol=1)


@pytest.mark.parametrize(
    ("image", "transparent"),
    [
        (Image.new("P", (4, 4), 0), 0),
        (Image.new("L", (4, 4), 9), 9),
        (Image.new("1", (4, 4), 0), 0),
        (Image.new("RGB", (4, 4), (1, 2, 3)), (1, 2, 3)),
    ],
)
def test_transparent_colour_is_white(image, transparent):
    file = saved(image, "PNG", transparency=transparent)
    assert np.asarray(read_picture(file)).min() == 255


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    for kind in ("GIF", "PNG", "TIFF", "WEBP"):
        file = saved(frames[0], kind, save_all=True, append_images=frames[1:])
        np.testing.assert_allclose(read_picture(file).getpixel((0, 0)), (255, 0, 0), atol=2)


@pytest.mark.parametrize("size", [(1, 1), (20_000, 1), (1, 20_000)])
def test_extreme_sizes(size):
    assert not grey(read_picture(saved(Image.new("RGB", size), "PNG"))).any()


@pytest.mark.parametrize("as_path", [str, Path])
def test_paths_that_are_no_picture(tmp_path, as_path):
    (tmp_path / "notes.txt").write_text("no picture")
    for name, reason, advice in (
        ("bird.jpg", "No such file", "check the path"),
        ("notes.txt", "cannot identify", "save it again"),
        (".", "Is a directory", "check the path"),
    ):
        path = as_path(tmp_path / name)
        with pytest.raises(OSError) as caught:  # noqa: PT011
            read_picture(path)
        start = f"cannot read picture {os.fspath(path)!r} ({reason}"
        assert str(caught.value).startswith(start)
        assert advice in str(caught.value)


def test_files_that_are_no_picture(tmp_path):
    nameless = io.BytesIO(b"no picture")
    with pytest.raises(OSError, match="cannot identify"):
        read_picture(nameless)
    nameless.name = "upload.jpg"
    with pytest.raises(OSError, match=r"'upload\.jpg' \(cannot identify"):
        read_picture(nameless)
    (tmp_path / "notes.txt").write_text("no picture")
    with open(tmp_path / "notes.txt") as text, pytest.raises(OSError, match=r"notes\.txt"):
        read_picture(text)


def test_too_many_pixels(monkeypatch):
    file = saved(Image.new("L", (30, 30)), "PNG")
    for limit in (800, 100):  # a warning, and an error, of Pillow's
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ValueError, match=r"900 pixels.*scaled down"):
            read_picture(file)


def test_truncated(tmp_path):
    path = tmp_path / "cut.jpg"
    path.write_bytes(SAMPLE.read_bytes()[:9000])
    with open_picture(path) as image:  # its header is whole
        assert image.size == Image.open(SAMPLE).size
    with pytest.raises(OSError, match=r"cut\.jpg'.*truncated"):
        read_picture(path)


FORMATS = {"BMP": "P", "GIF": "P", "JPEG": "CMYK", "JPEG2000": "RGB", "PNG": "I;16", "PPM": "I"}
FORMATS |= {"ICO": "RGBA", "QOI": "RGBA", "TGA": "LA", "TIFF": "CMYK", "WEBP": "RGBA"}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
def test_damage_gives_a_picture_or_one_kind_of_error(kind, monkeypatch):
    """Cut the file at every length, and flip its bytes."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)  # damage can make pictures huge
    image = Image.open(SAMPLE).resize((16, 16)).convert(FORMATS[kind].split(";")[0])
    whole = saved(image.convert(FORMATS[kind]), kind).getvalue()
    assert read_picture(io.BytesIO(whole)).mode == "RGB"
    chance = random.Random(kind)
    for position in chance.sample(range(len(whole)), min(len(whole), 2000)):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << chance.randrange(8)
        for data in (whole[:position], bytes(flipped)):
            with contextlib.suppress(OSError, ValueError):
                assert read_picture(io.BytesIO(data)).mode == "RGB"
