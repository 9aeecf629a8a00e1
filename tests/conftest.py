"""What the tests share: the network's table, and how to read a grid's PNG back."""

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from Model import Simple_Model

ROOT = Path(__file__).parent.parent
SAMPLE = ROOT / "sample.jpg"


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


def tiles(path, channels, block=True):
    """The palette indices of each channel, (H, W), or of each pixel if not `block`."""
    lines = described(path)
    height, width = (int(n) for n in lines["shape"].strip("()").split(", ")[1:3])
    row, k = (int(lines["tiles"].split()[n].partition("×")[0]) for n in (0, 4))
    x0, y0 = map(int, lines["first tile, x and y"].split())
    across, down = map(int, lines["from tile to tile, x and y"].split())
    with Image.open(path) as picture:
        assert picture.mode == "P"
        pixels = np.asarray(picture)
    for channel in range(channels):
        y, x = y0 + channel // row * down, x0 + channel % row * across
        tile = pixels[y : y + k * height, x : x + k * width]
        if block:
            blocks = tile.reshape(height, k, width, k)
            assert (blocks == blocks[:, :1, :, :1]).all(), "not a block of one colour"
            tile = blocks[:, 0, :, 0]
        yield tile
