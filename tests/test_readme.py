"""What the README says is so."""

import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, SAMPLE
from PIL import Image

from Model import LAYERS, Simple_Model
from Visualize import Visualize

README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def run_script(folder, code):
    (folder / "script.py").write_text(code, encoding="utf-8")
    return subprocess.run(
        [sys.executable, "script.py"],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_examples_run_one_after_the_other(tmp_path, pretrained):
    shutil.copy(SAMPLE, tmp_path)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    done = run_script(tmp_path, "\n".join(code for code in EXAMPLES if "import ray" not in code))
    assert done.returncode == 0, done.stderr
    assert "values: convolution output" in done.stdout
    assert "(1, 14, 14, 512)" in done.stdout
    assert re.search(r"^\[ *\d+ +\d+ +\d+\]$", done.stdout, re.MULTILINE)
    assert len(list((tmp_path / "Images").iterdir())) == 27
    assert len(list((tmp_path / "Grids").iterdir())) == 27
    (value,) = re.findall(r"^-?\d+\.\d+$", done.stdout, re.MULTILINE)  # read back from a picture
    fmap = pretrained.get_feature_map(SAMPLE)[LAYERS.index("conv_pw_6")][0, :, :, 0]
    assert abs(float(value) - fmap[0, 0]) <= np.ptp(fmap) / 238
    assert [path.name for path in (tmp_path / "Other").iterdir()] == ["Conv1.png"]


def test_ray_example_with_a_corrupt_picture(tmp_path, pretrained):
    pytest.importorskip("ray", reason="Ray has no wheel for this Python")
    import pyarrow.parquet

    (code,) = (code for code in EXAMPLES if "import ray" in code)
    (tmp_path / "pictures").mkdir()
    for number in range(4):
        picture = Image.open(SAMPLE).rotate(90 * number)
        picture.save(tmp_path / "pictures" / f"{number}.jpg")
    (tmp_path / "pictures" / "bad.jpg").write_bytes(SAMPLE.read_bytes()[:9000])
    done = run_script(tmp_path, code)
    assert done.returncode == 0, done.stderr
    rows = pyarrow.parquet.read_table(tmp_path / "vectors").to_pylist()
    assert len(rows) == 5
    for row in rows:
        if row["path"].endswith("bad.jpg"):
            assert row["vector"] is None
            assert row["path"] in row["error"]
        else:
            assert row["error"] is None
            assert len(row["vector"]) == 1024


@pytest.mark.parametrize(
    ("name", "example", "look"),
    [
        *((name, name, {}) for name in ("conv_dw_1", "conv_pw_1", "conv_pw_6", "conv_dw_13")),
        ("conv_pw_1", "conv_pw_1_after_relu", {"after": "relu", "scale": "layer"}),
    ],
)
def test_shown_grids_are_what_the_tool_draws(tmp_path, pretrained, name, example, look):
    model = Simple_Model(after=look["after"]) if look else pretrained
    maps = dict(zip(model.output_layers, model.get_feature_map(SAMPLE), strict=True))
    grids = Visualize(tmp_path, source=SAMPLE.name, weights="imagenet", **look)
    (path,) = grids.show_each_feature_map({name: maps[name]})
    drawn, shown = (
        np.asarray(Image.open(file), int) for file in (path, ROOT / "examples" / f"{example}.png")
    )
    assert drawn.shape == shown.shape
    different = (drawn != shown) & ((drawn < 239) | (shown < 239))  # greys are text
    assert np.abs(drawn - shown)[different].max(initial=0) <= 1  # processors round differently
    assert different.mean() < 1e-3


def test_pictures_are_there():
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", README)
    assert len(pictures) == 6
    assert all((ROOT / path).is_file() for path in pictures)


def test_options_are_those_of_the_command():
    shown = subprocess.run(
        [sys.executable, ROOT / "Visualize.py", "--help"], capture_output=True, text=True
    ).stdout
    options = README.partition("## Options")[2].partition("##")[0]
    assert set(re.findall(r"^\| `(--\w+)", options, re.MULTILINE)) == (
        set(re.findall(r"^  (?:-h, )?(--\w+)", shown, re.MULTILINE)) - {"--help"}
    )
