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
from Visualize import Visualize, main

README = (ROOT / "README.md").read_text(encoding="utf-8")
SCRIPTS = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)


def printed_by(folder, script):
    (folder / "script.py").write_text(script, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}
    command = [sys.executable, "script.py"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_scripts_run_one_after_the_other(tmp_path, pretrained):
    shutil.copy(SAMPLE, tmp_path)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    scripts = "\n".join(script for script in SCRIPTS if "import ray" not in script)
    printed = printed_by(tmp_path, scripts)
    assert "values: convolution output" in printed
    assert "(1, 14, 14, 512)" in printed
    assert re.search(r"^\[ *\d+ +\d+ +\d+\]$", printed, re.MULTILINE)
    (value,) = re.findall(r"^-?\d+\.\d+$", printed, re.MULTILINE)  # read back from a picture
    fmap = pretrained.get_feature_map(SAMPLE)[LAYERS.index("conv_pw_6")][0, :, :, 0]
    assert abs(float(value) - fmap[0, 0]) <= np.ptp(fmap) / 238
    assert [len(os.listdir(tmp_path / name)) for name in ("Images", "Grids")] == [27, 27]
    assert os.listdir(tmp_path / "Other") == ["Conv1.png"]


def test_ray_script_with_corrupt_pictures(tmp_path, pretrained):
    pytest.importorskip("ray", reason="Ray has no wheel for this Python")
    import pyarrow.parquet

    (tmp_path / "pictures").mkdir()
    for name in ("1.jpg", "2.jpg", "3.jpg"):
        shutil.copy(SAMPLE, tmp_path / "pictures" / name)
    for name in ("bad1.jpg", "bad2.jpg"):
        (tmp_path / "pictures" / name).write_bytes(SAMPLE.read_bytes()[:9000])
    printed_by(tmp_path, *(script for script in SCRIPTS if "import ray" in script))
    rows = pyarrow.parquet.read_table(tmp_path / "vectors").to_pylist()
    assert len({row["path"] for row in rows}) == len(rows) == 5
    for row in rows:
        bad = "bad" in os.path.basename(row["path"])
        assert bad == (row["vector"] is None) == (row["path"] in (row["error"] or ""))
        assert bad or len(row["vector"]) == 1024


@pytest.mark.parametrize("example", re.findall(r"!\[.*?\]\(examples/(.*?)\.png\)", README))
def test_shown_grids_are_what_the_tool_draws(tmp_path, pretrained, example):
    look, model = {}, pretrained
    if example.endswith("_after_relu"):
        look, model = {"after": "relu", "scale": "layer"}, Simple_Model(after="relu")
    maps = dict(zip(LAYERS, model.get_feature_map(SAMPLE), strict=True))
    name = example.removesuffix("_after_relu")
    grids = Visualize(tmp_path, source=SAMPLE.name, weights="imagenet", **look)
    (path,) = grids.show_each_feature_map({name: maps[name]})
    files = path, ROOT / "examples" / f"{example}.png"
    drawn, shown = (np.asarray(Image.open(file), int) for file in files)
    assert drawn.shape == shown.shape
    different = (drawn != shown) & ((drawn < 239) | (shown < 239))  # greys are text
    assert np.abs(drawn - shown)[different].max(initial=0) <= 1  # processors round differently
    assert different.mean() < 1e-3


def test_options_are_those_of_the_command(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    known = set(re.findall(r"^  (--\w+)", capsys.readouterr().out, re.MULTILINE))
    assert known == set(re.findall(r"^\| `(--\w+)", README, re.MULTILINE))
