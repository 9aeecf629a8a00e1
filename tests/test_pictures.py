"""`read_picture`: any picture, as a person sees it, or one clear error."""

import contextlib
import io
import random
import struct

import numpy as np
import pytest
from conftest import SAMPLE
from PIL import Image, ImageCms, features

from Model import read_picture

RAMP = np.linspace(0, 1, 256).reshape(16, 16)
RAMP8 = np.rint(RAMP * 255).astype(np.uint8)


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file


def grey(picture):
    pixels = np.asarray(picture)
    assert picture.mode == "RGB"
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


@pytest.mark.parametrize(
    ("image", "kind", "options"),
    [
        (Image.fromarray(RAMP8), "PNG", {}),
        (Image.fromarray(RAMP8).convert("P"), "GIF", {}),
        (Image.fromarray(RAMP8).convert("LA"), "PNG", {}),
        (Image.fromarray((RAMP8 * 257.0).astype(np.uint16)), "PNG", {}),
        (Image.fromarray((RAMP8 * 257.0).astype(np.uint16)), "PPM", {}),
        (Image.fromarray((RAMP8 * 257.0).astype(np.uint16)), "TIFF", {}),
        (Image.fromarray((RAMP8 * 257.0).astype(">u2")), "TIFF", {}),
        (Image.fromarray((RAMP8 * 8e6).astype(np.int32)), "TIFF", {}),
        (Image.fromarray((RAMP8 * 8e6).astype(np.int32) - 2**30), "TIFF", {}),
        (Image.fromarray((RAMP8 * 3.0).astype(np.float32)), "TIFF", {}),
        (Image.fromarray((RAMP * 1e-3 - 5).astype(np.float32)), "TIFF", {}),
    ],
)
def test_grey_of_every_depth(image, kind, options):
    np.testing.assert_allclose(grey(read_picture(saved(image, kind, **options))), RAMP8, atol=1)


def test_deep_grey_keeps_to_the_range_of_its_format():
    dark = Image.fromarray((RAMP8 * 25.7).astype(np.uint16))
    for kind in ("PNG", "PPM", "TIFF"):
        np.testing.assert_allclose(grey(read_picture(saved(dark, kind))), RAMP8 / 10, atol=1)


def test_unsigned_32_bit_tiff():
    values = (RAMP * (2**32 - 1)).astype(np.uint32)
    signed = saved(Image.fromarray(values.view(np.int32)), "TIFF").getvalue()
    sample_format = b"\x53\x01\x03\x00\x01\x00\x00\x00"  # the tag, up to its value
    assert signed.count(sample_format + b"\x02") == 1
    file = io.BytesIO(signed.replace(sample_format + b"\x02", sample_format + b"\x01"))
    np.testing.assert_allclose(grey(read_picture(file)), RAMP8, atol=1)


def test_tiff_whose_white_is_zero():
    file = saved(Image.fromarray((RAMP8 * 257.0).astype(np.uint16)), "TIFF").getvalue()
    photometric = b"\x06\x01\x03\x00\x01\x00\x00\x00"  # the tag, up to its value
    assert file.count(photometric + b"\x01") == 1
    file = io.BytesIO(file.replace(photometric + b"\x01", photometric + b"\x00"))
    np.testing.assert_allclose(grey(read_picture(file)), 255 - RAMP8, atol=1)


def test_floats_that_are_not_finite():
    values = RAMP.astype(np.float32)
    values[0, 3], values[1, 3], values[2, 3] = np.nan, np.inf, -np.inf
    pixels = grey(read_picture(saved(Image.fromarray(values), "TIFF")))
    assert (pixels[0, 3], pixels[1, 3], pixels[2, 3]) == (0, 255, 0)
    np.testing.assert_allclose(pixels[3:], RAMP8[3:], atol=1)


@pytest.mark.parametrize("value", [0, 7])
def test_constant_deep_picture(value):
    assert not grey(read_picture(saved(Image.new("F", (4, 4), value), "TIFF"))).any()


def test_one_bit():
    pixels = grey(read_picture(saved(Image.fromarray(RAMP8 > 127), "PNG")))
    np.testing.assert_array_equal(pixels, (RAMP8 > 127) * 255)


def test_cmyk():
    picture = read_picture(saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF"))
    assert picture.getpixel((4, 4)) == (255, 0, 0)


def test_lab():
    red = Image.new("RGB", (8, 8), (200, 30, 30))
    lab = ImageCms.profileToProfile(
        red, ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), outputMode="LAB"
    )
    pixel = read_picture(saved(lab, "TIFF")).getpixel((4, 4))
    np.testing.assert_allclose(pixel, (200, 30, 30), atol=4)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation):
    upright = Image.fromarray(RAMP8).crop((0, 0, 16, 8))
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose, from upright to stored
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    np.testing.assert_array_equal(grey(read_picture(saved(stored, "PNG", exif=exif))), upright)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_transparency_is_over_white(kind):
    image = Image.new("RGBA", (3, 1), (255, 0, 0, 0))
    image.putpixel((1, 0), (0, 0, 0, 128))
    image.putpixel((2, 0), (10, 20, 30, 255))
    picture = read_picture(saved(image, kind, **({"lossless": True} if kind == "WEBP" else {})))
    np.testing.assert_allclose(
        np.asarray(picture)[0], [(255, 255, 255), (127, 127, 127), (10, 20, 30)], atol=1
    )


@pytest.mark.parametrize(
    ("image", "transparent"),
    [
        (Image.new("P", (4, 4), 0), 0),
        (Image.new("L", (4, 4), 9), 9),
        (Image.new("1", (4, 4), 0), 0),
        (Image.new("RGB", (4, 4), (1, 2, 3)), (1, 2, 3)),
        (Image.new("I;16", (4, 4), 300), 300),
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


def test_a_decoder_that_closes_its_file():
    """Pillow's reader of FTEX textures does; the caller's file stays open."""
    header = struct.pack("<4s7i", b"FTEX", 0, 2, 1, 1, 1, 1, 32)
    file = io.BytesIO(header + struct.pack("<i", 6) + bytes([1, 2, 3, 4, 5, 6]))
    for _ in range(2):
        np.testing.assert_array_equal(read_picture(file), [[(1, 2, 3), (4, 5, 6)]])
    assert not file.closed


@pytest.mark.parametrize("size", [(1, 1), (20_000, 1), (1, 20_000)])
def test_extreme_sizes(size):
    assert read_picture(saved(Image.new("RGB", size), "PNG")).size == size


def test_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"bird\.jpg': check the path"):
        read_picture(tmp_path / "bird.jpg")


def test_folder(tmp_path):
    with pytest.raises(OSError, match=f"{tmp_path.name}' is a folder"):
        read_picture(tmp_path)


def test_no_picture(tmp_path):
    (tmp_path / "notes.txt").write_text("no picture")
    with pytest.raises(OSError, match=r"notes\.txt' is not a picture"):
        read_picture(tmp_path / "notes.txt")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_too_many_pixels(monkeypatch):
    file = saved(Image.new("L", (30, 30)), "PNG")
    for limit in (800, 100):  # a warning, and an error, of Pillow's
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ValueError, match="too many pixels"):
            read_picture(file)


def test_truncated(tmp_path):
    path = tmp_path / "cut.jpg"
    path.write_bytes(SAMPLE.read_bytes()[:9000])
    with pytest.raises(OSError, match=r"cut\.jpg': truncated"):
        read_picture(path)


FORMATS = {
    "AVIF": ("RGB", {}),
    "BMP": ("P", {}),
    "DDS": ("RGBA", {}),
    "DIB": ("RGB", {}),
    "GIF": ("P", {"transparency": 3}),
    "ICO": ("RGBA", {"sizes": [(16, 16)]}),
    "IM": ("RGB", {}),
    "JPEG": ("CMYK", {"exif": b"Exif\0\0MM\0*\0\0\0\x08\0\1\1\x12\0\3\0\0\0\1\0\6\0\0\0\0\0\0"}),
    "JPEG2000": ("RGB", {}),
    "MPO": ("RGB", {}),
    "MSP": ("1", {}),
    "PCX": ("P", {}),
    "PNG": ("I;16", {"transparency": 5}),
    "PPM": ("I", {}),
    "QOI": ("RGBA", {}),
    "SGI": ("RGB", {}),
    "SPIDER": ("F", {}),
    "TGA": ("LA", {"compression": "tga_rle"}),
    "TIFF": ("LAB", {"compression": "tiff_lzw"}),
    "WEBP": ("RGBA", {}),
    "XBM": ("1", {}),
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
def test_damage_gives_a_picture_or_one_kind_of_error(kind, monkeypatch, tmp_path):
    """Cut the file at every length, and flip its bytes."""
    Image.init()
    if kind not in Image.SAVE or (kind == "AVIF" and not features.check("avif")):
        pytest.skip(f"this Pillow writes no {kind}")
    mode, options = FORMATS[kind]
    source = Image.open(SAMPLE).resize((16, 16))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)  # damage can make pictures huge
    image = Image.new("LAB", (16, 16)) if mode == "LAB" else source.convert(mode.split(";")[0])
    if mode == "I;16":
        image = image.convert("I;16")
    whole = saved(image, kind, **options).getvalue()
    assert read_picture(io.BytesIO(whole)).mode == "RGB"

    chance = random.Random(kind)
    lengths = range(len(whole)) if len(whole) < 3000 else chance.sample(range(len(whole)), 3000)
    damaged = [whole[:length] for length in lengths]
    for position in lengths:
        for flip in (0xFF, 1 << chance.randrange(8)):
            data = bytearray(whole)
            data[position] ^= flip
            damaged.append(bytes(data))
    for data in damaged:
        with contextlib.suppress(OSError, ValueError):
            assert read_picture(io.BytesIO(data)).mode == "RGB"
