"""The notebooks run as they stand, and print what is stored in them."""

import re
import shutil

import numpy as np
import pytest
from conftest import ROOT

nbformat = pytest.importorskip("nbformat")
nbclient = pytest.importorskip("nbclient")

NOTEBOOKS = sorted(ROOT.glob("examples/*.ipynb"))
NUMBER = r"-?\d+(?:\.\d*)?(?:e[-+]?\d+)?"


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def printed(cell, name="stdout"):
    return "".join(output.text for output in cell.outputs if output.get("name") == name)


def run(notebook, folder):
    resources = {"metadata": {"path": folder}}
    nbclient.NotebookClient(notebook, timeout=600, resources=resources).execute()


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


def test_cells_are_short(path):
    notebook = nbformat.read(path, as_version=4)
    lines = [len(cell.source.splitlines()) for cell in code_cells(notebook)]
    assert max(lines) <= 10
    assert any(cell.outputs for cell in code_cells(notebook))
    assert not any(printed(cell, "stderr") for cell in code_cells(notebook))


def test_the_lecture_fits_into_a_lecture():
    path = ROOT / "examples" / "lecture.ipynb"
    notebook = nbformat.read(path, as_version=4)
    lines = [line for cell in code_cells(notebook) for line in cell.source.splitlines()]
    assert len(notebook.cells) <= 30
    assert sum(1 for line in lines if line.strip()) <= 150
    assert path.stat().st_size <= 1.5e6


def test_away_from_the_repository_one_line_says_what_is_missing(path, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    notebook.cells = code_cells(notebook)[:1]
    with pytest.raises(nbclient.exceptions.CellExecutionError) as error:
        run(notebook, tmp_path)
    assert error.value.ename == "SystemExit"
    assert error.value.evalue.startswith("Model.py is missing")
    assert "\n" not in error.value.evalue


@pytest.mark.parametrize("start", ["examples", "."])
def test_it_prints_what_is_stored(path, start, tmp_path, pretrained):
    for file in ("Model.py", "Visualize.py", "sample.jpg"):
        shutil.copy(ROOT / file, tmp_path)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    stored = nbformat.read(path, as_version=4)
    fresh = nbformat.read(path, as_version=4)
    run(fresh, tmp_path / start)
    for old, new in zip(code_cells(stored), code_cells(fresh)):
        assert not printed(new, "stderr")
        # Processors round differently: the words are equal, the numbers nearly.
        assert (
            re.sub(NUMBER, "#", printed(new)).split() == re.sub(NUMBER, "#", printed(old)).split()
        )
        numbers = [np.array(re.findall(NUMBER, printed(cell)), float) for cell in (old, new)]
        np.testing.assert_allclose(*numbers, rtol=0.02, atol=0.02)
    assert list((tmp_path / "Lecture").glob("*.png"))
