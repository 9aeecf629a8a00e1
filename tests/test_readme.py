"""What the README says is so."""

import os
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, SAMPLE
from test_model import LAYERS

README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
PRINTED = [
    r"\(1, 14, 14, 512\)\n",
    "".join(rf"Grids.{name}\.png\n" for name, _, _ in LAYERS),
    r"(sample\.jpg \d+\n)\1",
]


@pytest.mark.parametrize(("example", "printed"), list(zip(EXAMPLES, PRINTED, strict=True)))
def test_examples_run_as_scripts(tmp_path, pretrained, example, printed):
    shutil.copy(SAMPLE, tmp_path)
    (tmp_path / "script.py").write_text(example)
    done = subprocess.run(
        [sys.executable, "script.py"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(printed, done.stdout)


def test_pictures_are_there():
    pictures = re.findall(r"!\[.*?\]\((.*?)\)", README)
    assert len(pictures) == 4
    assert all((ROOT / path).is_file() for path in pictures)


def test_options_are_those_of_the_command():
    shown = subprocess.run(
        [sys.executable, ROOT / "Visualize.py", "--help"], capture_output=True, text=True
    ).stdout
    options = README.partition("## Options")[2].partition("##")[0]
    assert set(re.findall(r"^\| `(--\w+)", options, re.MULTILINE)) == (
        set(re.findall(r"^  (?:-h, )?(--\w+)", shown, re.MULTILINE)) - {"--help"}
    )
