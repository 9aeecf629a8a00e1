"""What the tests share: the table of layers, and how to read a page's PNG back."""

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

# Palette indices.
LAST_LEVEL = 238
INK = 239
PAPER = 255


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
    """The lines of a page's Description, as a mapping."""
    with Image.open(path) as page:
        return dict(line.split(": ", 1) for line in page.text["Description"].split("\n"))


def tiles(path, spare=0):
    """The palette indices of each tile, and of spare places after them."""
    with Image.open(path) as page:
        assert page.mode == "P"
        pixels = np.asarray(page)
        title = page.text["Title"]
    count, height, width = map(int, re.search(r"(\d+) \w+ of (\d+)×(\d+)", title).groups())
    numbers = map(int, re.findall(r"\d+", described(path)["tiles"]))
    columns, zoom, _, first_x, first_y, tile_width, tile_height = numbers
    for place in range(count + spare):
        row, column = divmod(place, columns)
        top = first_y + row * tile_height
        left = first_x + column * tile_width
        yield pixels[top : top + zoom * height, left : left + zoom * width]
