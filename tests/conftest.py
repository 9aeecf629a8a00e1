"""What the tests share: the table of layers, and how to read a grid's PNG back."""

import os
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from Model import Simple_Model

ROOT = Path(__file__).parent.parent
SAMPLE = ROOT / "sample.jpg"
# (side, channels) of each layer in network order: the table of the MobileNets paper.
SIZES = [(112, 32), (112, 64), (56, 64), (56, 128), (56, 128), (56, 128), (28, 128), (28, 256)]
SIZES += [(28, 256), (28, 256), (14, 256), *[(14, 512)] * 11, (7, 512), *[(7, 1024)] * 3]


@pytest.fixture(scope="session")
def pretrained() -> Simple_Model:
    """The network with its ImageNet weights; without them the test is skipped."""
    try:
        return Simple_Model()
    except OSError as error:
        if os.environ.get("REQUIRE_WEIGHTS"):
            pytest.fail(f"REQUIRE_WEIGHTS is set: {error}")
        pytest.skip(f"needs the ImageNet weights: {error}")


def described(path):
    """The lines of a picture's Description, as a mapping."""
    with Image.open(path) as picture:
        return dict(line.split(": ", 1) for line in picture.text["Description"].split("\n"))


def tiles(path, spare=0):
    """The palette indices of each channel's tile, and of spare cells after them."""
    with Image.open(path) as picture:
        assert picture.mode == "P"
        pixels, title = np.asarray(picture), picture.text["Title"]
    channels, height, width = map(int, re.search(r"(\d+) channels of (\d+)×(\d+)", title).groups())
    square, k = map(int, re.findall(r"\d+", described(path)["tiles"])[:2])
    for cell in range(channels + spare):
        y, x = 81 + cell // square * (k * height + 3), 69 + cell % square * (k * width + 3)
        yield pixels[y : y + k * height, x : x + k * width]
