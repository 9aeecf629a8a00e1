"""What the README and the examples say is so."""

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
SHOWN = re.findall(r"examples/(\w+)\.png", README)


def run(folder, *command):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}
    command = [sys.executable, *command]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture(scope="module")
def written(tmp_path_factory, pretrained):
    """A folder in which the README's scripts have run, one after the other."""
    folder = tmp_path_factory.mktemp("readme")
    shutil.copy(SAMPLE, folder)
    (folder / "script.py").write_text("\n".join(SCRIPTS), encoding="utf-8")
    done = run(folder, "script.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "(1, 14, 14, 512)\n[373 274 464]\n"
    assert done.stderr == ""
    return folder


def test_scripts_write_what_they_name(written):
    for folder, names in (
        ("Lecture", {"kernels.png", "net.png", "sample.npz"}),
        ("Grids", {"eyes.png", "highest.png"}),
        ("Other", {"Conv1.png"}),
    ):
        assert set(os.listdir(written / folder)) == names
    saved = np.load(written / "Lecture" / "sample.npz")
    assert list(saved) == LAYERS


def draw_shown(example, folder, written):
    """Draw a page that the README shows."""
    for path in written.glob(f"*/{example}.png"):
        return path
    after_relu = example.endswith("_after_relu")
    name = example.removesuffix("_after_relu")
    model = Simple_Model(after="relu" if after_relu else "conv")
    scale = (0, 6) if after_relu else "channel"
    grids = Visualize(folder, scale, values=model.values, source=SAMPLE.name)
    fmap = model.get_feature_map(SAMPLE)[LAYERS.index(name)]
    return grids.show_each_feature_map({name: fmap})[0]


@pytest.mark.parametrize("example", SHOWN)
def test_shown_pages_are_what_the_tool_draws(tmp_path, written, example):
    files = draw_shown(example, tmp_path, written), ROOT / "examples" / f"{example}.png"
    drawn, shown = (np.asarray(Image.open(file), int) for file in files)
    assert drawn.shape == shown.shape
    different = (drawn != shown) & ((drawn < 239) | (shown < 239))  # greys are text
    assert np.abs(drawn - shown)[different].max(initial=0) <= 1  # processors round differently
    assert different.mean() < 1e-3


def test_the_readme_shows_all_example_pages():
    assert set(SHOWN) == {path.stem for path in ROOT.glob("examples/*.png")}


def test_options_are_those_of_the_command(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    known = set(re.findall(r"^  (--\w+)", capsys.readouterr().out, re.MULTILINE))
    assert known == set(re.findall(r"^\| `(--\w+)", README, re.MULTILINE))


def test_the_notebook_runs_as_it_stands(tmp_path, pretrained):
    import nbclient
    import nbformat

    for file in ("Model.py", "Visualize.py", "sample.jpg"):
        shutil.copy(ROOT / file, tmp_path)
    (tmp_path / "examples").mkdir()
    notebook = nbformat.read(ROOT / "examples" / "lecture.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert any(cell.outputs for cell in cells)
    assert all(output.get("name") != "stderr" for cell in cells for output in cell.outputs)
    assert all(len(cell.source.splitlines()) <= 10 for cell in cells)
    resources = {"metadata": {"path": tmp_path / "examples"}}
    nbclient.NotebookClient(notebook, timeout=300, resources=resources).execute()
    assert list((tmp_path / "Lecture").glob("*.png"))
