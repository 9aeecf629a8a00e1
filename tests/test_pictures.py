"""`read_picture`: any picture, as a person sees it, at 224×224, or one clear error."""

import contextlib
import io
import random
import re
import struct
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, SAMPLE
from PIL import Image

from Model import read_picture

RAMP = np.linspace(0, 1, 224 * 224).reshape(224, 224)  # of the size that comes out
RAMP8 = np.rint(RAMP * 255).astype(np.uint8)
RAMP16, RAMP32 = RAMP8.astype(np.uint16) * 257, RAMP8.astype(np.int32) * 8_000_000
DARK16 = (RAMP8 * 25.7).astype(np.uint16)
ODD = RAMP.astype(np.float32)
ODD[0, :2] = np.nan
ENDLESS = RAMP.astype(np.float32)
ENDLESS[0, :2] = np.inf, -np.inf


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file


def grey(picture):
    pixels = np.asarray(picture)
    assert (picture.mode, picture.size) == ("RGB", (224, 224))
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0]


def grey_pictures():
    """Grey of every depth, as (image, file format, expected values from 0 to 255)."""
    for mode in ("L", "LA", "RGB"):
        yield pytest.param(Image.fromarray(RAMP8).convert(mode), "PNG", RAMP8, id=mode)
    yield pytest.param(Image.fromarray(RAMP8).convert("P"), "GIF", RAMP8, id="palette")
    yield pytest.param(Image.fromarray(RAMP8 > 127), "PNG", (RAMP8 > 127) * 255.0, id="1 bit")
    for kind in ("PNG", "PPM", "TIFF"):
        yield pytest.param(Image.fromarray(RAMP16), kind, RAMP8, id=f"16-bit {kind}")
        yield pytest.param(Image.fromarray(DARK16), kind, RAMP8, id=f"dark 16-bit {kind}")
    big_endian = Image.fromarray(RAMP16.astype(">u2"))
    yield pytest.param(big_endian, "TIFF", RAMP8, id="16-bit big-endian")
    for offset in (0, 2**30):
        yield pytest.param(Image.fromarray(RAMP32 - offset), "TIFF", RAMP8, id=f"32-bit -{offset}")
    constant = Image.fromarray(np.full_like(RAMP16, 999))
    yield pytest.param(constant, "PNG", RAMP8 * 0, id="constant 16-bit")
    small = Image.fromarray((RAMP * 1e-3 - 5).astype(np.float32))
    yield pytest.param(small, "TIFF", RAMP8, id="float of a small range")
    yield pytest.param(Image.fromarray(ODD), "TIFF", RAMP8, id="float with NaN")
    yield pytest.param(Image.fromarray(ENDLESS), "TIFF", RAMP8, id="float with infinity")
    yield pytest.param(Image.fromarray(RAMP.astype(np.float32)), "PPM", RAMP8, id="PFM")


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize(("image", "kind", "expected"), list(grey_pictures()))
def test_grey_of_every_depth(image, kind, expected):
    np.testing.assert_allclose(grey(read_picture(saved(image, kind))), expected, atol=1)


def grey_tiff(bits, data):
    """A TIFF of 224×224, written by hand, because Pillow does not write this kind."""
    tags = [(256, 4, 224), (257, 4, 224), (258, 3, bits), (259, 3, 1), (262, 3, 1)]
    tags += [(273, 4, 122), (277, 3, 1), (278, 4, 224), (279, 4, len(data))]
    file = struct.pack("<2sHIH", b"II", 42, 8, len(tags))
    for tag, kind, value in tags:
        file += struct.pack("<HHII", tag, kind, 1, value)
    return io.BytesIO(file + bytes(4) + data)


def test_grey_of_12_bits():
    even, odd = np.rint(RAMP * 4095).astype(int).reshape(-1, 2).T
    packed = np.stack([even >> 4, (even & 15) << 4 | odd >> 8, odd & 255], axis=1)
    file = grey_tiff(12, packed.astype(np.uint8).tobytes())
    for picture in (file, Image.open(file), Image.open(file).copy()):
        np.testing.assert_allclose(grey(read_picture(picture)), RAMP8, atol=1)


def test_a_malformed_number_in_the_exif_block():
    exif = struct.pack("<2sHIH", b"II", 42, 8, 2) + struct.pack("<HHIHH", 0x112, 3, 1, 6, 0)
    exif += struct.pack("<HHII", 0x11A, 10, 1, 38) + bytes(4) + struct.pack("<ii", -1, 0)
    image = Image.open(SAMPLE)
    turned = read_picture(SAMPLE).transpose(Image.Transpose.ROTATE_270)
    for block in (b"Exif\0\0" + exif, exif):
        file = saved(image, "PNG", exif=block)
        np.testing.assert_array_equal(read_picture(file), turned)


def test_no_colour_profile_is_passed_on():
    for image in (Image.open(SAMPLE), Image.open(SAMPLE).convert("CMYK")):
        file = saved(image, "TIFF", icc_profile=b"stands for a profile")
        assert read_picture(file).info == {}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation(orientation):
    upright = Image.fromarray(RAMP8[:112])
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}  # Image.Transpose, from upright to stored
    stored = upright.transpose(undo[orientation]) if orientation > 1 else upright
    exif = Image.Exif()
    exif[0x0112] = orientation
    expected = upright.resize((224, 224), Image.Resampling.BICUBIC)
    for kind in ("PNG", "TIFF"):
        seen = grey(read_picture(saved(stored, kind, exif=exif)))
        np.testing.assert_allclose(seen, expected, atol=1)  # it is turned after it is reduced


@pytest.mark.parametrize("size", [(500, 331), (100, 300), (224, 224), (1, 1), (20_000, 1)])
def test_squeezed_with_the_bicubic_filter(size):
    image = Image.open(SAMPLE).resize(size)
    expected = image.resize((224, 224), Image.Resampling.BICUBIC)
    np.testing.assert_array_equal(read_picture(saved(image, "PNG")), expected)


def test_every_kind_of_source(tmp_path):
    image = Image.open(SAMPLE).convert("RGBA")
    image.getexif()[0x0112] = 6
    before = image.tobytes()
    stream = saved(image, "PNG", exif=image.getexif())  # not at its start now
    (tmp_path / "turned.png").write_bytes(stream.getvalue())
    path = tmp_path / "turned.png"
    with open(path, "rb") as file:
        for source in (path, str(path), file, file, stream, stream):
            np.testing.assert_array_equal(read_picture(source), read_picture(image))
        assert not file.closed
    assert stream.getvalue() == path.read_bytes()
    assert (image.mode, image.tobytes(), image.getexif()[0x0112]) == ("RGBA", before, 6)


def test_transparency_is_over_white():
    image = Image.new("RGBA", (224, 224), (255, 0, 0, 0))
    image.paste((0, 0, 0, 128), (0, 75, 224, 150))
    image.paste((10, 20, 30, 255), (0, 150, 224, 224))
    for kind, options in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})):
        pixels = np.asarray(read_picture(saved(image, kind, **options)))[[30, 110, 190], 100]
        np.testing.assert_allclose(pixels, [(255,) * 3, (127,) * 3, (10, 20, 30)], atol=1)
    file = saved(Image.new("P", (4, 4), 0), "PNG", transparency=0)
    assert np.asarray(read_picture(file)).min() == 255


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_large_pictures_take_little_memory(tmp_path):
    """No copy is made of grey and deep grey, and none of all colours of a transparent picture."""
    code = "import sys; from Model import read_picture; read_picture(sys.argv[1])\n"
    code += "print(next(line.split()[1] for line in open('/proc/self/status') if 'VmHWM' in line))"
    peaks = {}
    for mode, side in (
        ("none", 1),
        ("L", 6000),
        ("I;16", 6000),
        ("RGB", 6000),
        ("RGBA", 6000),
        ("P", 6000),
    ):
        path = tmp_path / f"{mode[0]}.png"
        image = Image.new("L" if mode == "none" else mode, (side, side))
        image.save(path, compress_level=1, **({"transparency": 0} if mode == "P" else {}))
        command = [sys.executable, "-c", code, path]
        done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
        peaks[mode] = int(done.stdout)
    assert peaks["L"] - peaks["none"] < 1.4 * 36_000
    assert peaks["I;16"] - peaks["none"] < 1.4 * 72_000
    assert peaks["RGBA"] < 2 * peaks["RGB"]
    assert peaks["P"] < 2 * peaks["RGB"]


def test_colours_of_the_first_frame():
    cmyk = saved(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "TIFF")
    blue = {"save_all": True, "append_images": [Image.new("RGB", (8, 8), "blue")]}
    red = Image.new("RGB", (8, 8), "red")
    for file in (cmyk, *(saved(red, kind, **blue) for kind in ("GIF", "PNG", "TIFF", "WEBP"))):
        np.testing.assert_allclose(read_picture(file).getpixel((4, 4)), (255, 0, 0), atol=2)


def test_a_picture_larger_than_pillow_warns_of(monkeypatch):
    file = saved(Image.new("L", (30, 30)), "PNG")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(OSError, match=r"cannot read picture.*900 pixels"):
        read_picture(file)


@pytest.mark.parametrize("given", [b"data" * 9999, np.zeros((99, 99)), None, 3, "", "n" * 5000])
def test_what_is_no_picture(given):
    with pytest.raises(OSError, match=r"^cannot read picture ") as caught:
        read_picture(given)
    message = str(caught.value)
    assert len(message) <= 300
    assert message.isprintable()


def test_files_that_are_no_picture(tmp_path):
    for name, content in (("empty.jpg", b""), ("cut.jpg", SAMPLE.read_bytes()[:5000])):
        path = tmp_path / name
        path.write_bytes(content)
        for given in (path, str(path)):
            with pytest.raises(OSError, match=rf"cannot read picture '.*{name}': "):
                read_picture(given)
        with open(path, "rb") as file, pytest.raises(OSError, match=name):
            read_picture(file)
    with pytest.raises(OSError, match=re.escape(repr(str(tmp_path)))):
        read_picture(tmp_path)


@pytest.mark.parametrize("kind", ["BMP", "GIF", "ICO", "JPEG", "JPEG2000", "PNG", "TIFF", "WEBP"])
@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
def test_damage_gives_a_picture_or_one_kind_of_error(kind, monkeypatch):
    """Cut the file at any length, and flip its bytes."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100_000)  # damage can make pictures huge
    whole = saved(Image.open(SAMPLE).resize((16, 16)), kind).getvalue()
    chance = random.Random(kind)
    for position in chance.sample(range(len(whole)), min(len(whole), 2000)):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << chance.randrange(8)
        for data in (whole[:position], bytes(flipped)):
            with contextlib.suppress(OSError, ValueError):
                assert read_picture(io.BytesIO(data)).mode == "RGB"
