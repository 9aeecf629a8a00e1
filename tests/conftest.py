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
    row, k = (int(n.partition("×")[0]) for n in described(path)["tiles"].split()[:5:4])
    with Image.open(path) as picture:
        assert picture.mode == "P"
        pixels = np.asarray(picture)
        shape = picture.text["Title"].partition(" channels of ")[2].split()[0]
    height, width = map(int, shape.split("×"))
    for channel in range(channels):
        y, x = 81 + channel // row * (k * height + 3), 69 + channel % row * (k * width + 3)
        tile = pixels[y : y + k * height, x : x + k * width]
        if block:
            blocks = tile.reshape(height, k, width, k)
            assert (blocks == blocks[:, :1, :, :1]).all(), "not a block of one colour"
            tile = blocks[:, 0, :, 0]
        yield tile
