"""What the tests share: the table of layers, and how to find the tiles on a page again."""

import os
import signal
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from Model import Simple_Model
from Visualize import MARGIN, TITLE_SIZE, draw_text

ROOT = Path(__file__).parent.parent
SAMPLE = ROOT / "sample.jpg"
# (side, channels) of each layer in network order: the table of the MobileNets paper.
SIZES = [(112, 32), (112, 64), (56, 64), (56, 128), (56, 128), (56, 128), (28, 128), (28, 256)]
SIZES += [(28, 256), (28, 256), (14, 256), *[(14, 512)] * 11, (7, 512), *[(7, 1024)] * 3]

# Palette indices.
LAST_LEVEL = 238
GREY = 249
WHITE = 255

HEADING, CAPTION, SOURCE = range(3)  # the lines below the title


@pytest.fixture(scope="session")
def pretrained() -> Simple_Model:
    """The network with its ImageNet weights; without them the test is skipped."""
    try:
        return Simple_Model()
    except OSError as error:
        if os.environ.get("REQUIRE_WEIGHTS"):
            pytest.fail(f"REQUIRE_WEIGHTS is set: {error}")
        pytest.skip(f"needs the ImageNet weights: {error}")


def heed_ctrl_c():
    """For a new process: tests that run in the background ignore SIGINT, and it would, too."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Tile(NamedTuple):
    top: int  # of the pixels inside its frame
    left: int
    pixels: np.ndarray
    zoom: int


def pixels_of(path):
    """The palette indices of a page."""
    with Image.open(path) as page:
        assert page.mode == "P"
        return np.asarray(page)


def assert_line(path, line, text):
    """Check that a line below the title shows this text and nothing else."""
    height = len(draw_text(""))
    top = MARGIN + len(draw_text("", TITLE_SIZE)) + line * height
    strip = pixels_of(path)[top : top + height, MARGIN:]
    width = draw_text(text).shape[1]
    np.testing.assert_array_equal(strip[:, :width], draw_text(text), err_msg=text)
    assert (strip[:, width:] == WHITE).all()


def find_tiles(path, height, width):
    """All tiles of maps of this size, found by their grey frames, from row to row."""
    page = pixels_of(path)
    grey = page == GREY
    found = []
    for top in range(len(page) - height - 1):
        edges = np.flatnonzero(np.diff(grey[top], prepend=False, append=False))
        for left, right in zip(edges[::2], edges[1::2]):
            zoom, rest = divmod(right - left - 2, width)
            bottom = top + zoom * height + 1
            if zoom < 1 or rest or bottom >= len(page):
                continue
            sides = grey[top:bottom, left], grey[top:bottom, right - 1], grey[bottom, left:right]
            if all(side.all() for side in sides):
                inside = page[top + 1 : bottom, left + 1 : right - 1]
                found.append(Tile(top + 1, left + 1, inside, zoom))
    return found
