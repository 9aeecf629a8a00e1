"""Fixtures that the tests share."""

import os
from pathlib import Path

import pytest

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
