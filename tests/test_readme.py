"""What the README and the examples say is so."""

import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import HEADING, ROOT, SAMPLE, assert_line
from PIL import Image

from Model import Simple_Model
from Visualize import Visualize, main

README = (ROOT / "README.md").read_text(encoding="utf-8")
EXAMPLES = (ROOT / "examples" / "README.md").read_text(encoding="utf-8")
SHOWN = set(re.findall(r"(\w+)\.png\"", README + EXAMPLES))


def blocks(text):
    return re.findall(r"^```python\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def run(folder, code):
    (folder / "script.py").write_text(code, encoding="utf-8")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "MPLBACKEND": "agg"}
    command = [sys.executable, "script.py"]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def written(tmp_path_factory, pretrained):
    """A folder in which the examples have run, one after the other."""
    folder = tmp_path_factory.mktemp("examples")
    shutil.copy(SAMPLE, folder)
    assert run(folder, "\n".join(blocks(EXAMPLES))) == "[373 274 464]\n"
    return folder / "Pages"


def test_the_readme_is_a_front_page(tmp_path, pretrained):
    assert README.count("\n") <= 130
    (block,) = blocks(README)
    assert block.count("\n") <= 15
    shutil.copy(SAMPLE, tmp_path)
    assert run(tmp_path, block) == "(1, 14, 14, 512)\nconv_pw_6.png\n"
    assert os.listdir(tmp_path / "Pages") == ["conv_pw_6.png"]


def test_examples_write_what_they_name(written):
    names = {"eyes.png", "highest.png", "kernels.png", "net.png", "Conv1.png"}
    assert set(os.listdir(written)) == names


NESTED = """\
inner = keras.Sequential([keras.Input((224, 224, 3)), keras.layers.Conv2D(5, 3, name="Conv1")])
whole = keras.Sequential([keras.Input((224, 224, 3)), inner, keras.layers.Flatten()])
other = whole.get_layer(inner.name)
"""
SEQUENTIAL = """\
other = keras.Sequential([keras.Input((224, 224, 3)), keras.layers.Conv2D(5, 3, name="Conv1")])
"""


@pytest.mark.parametrize("model", [SEQUENTIAL, NESTED])
def test_another_network_may_be_sequential_or_nested(tmp_path, model):
    (block,) = [block for block in blocks(EXAMPLES) if "MobileNetV2" in block]
    code = "import numpy as np\nfrom Visualize import Visualize\n"
    code += re.sub(r"^other = .*\n", model, block, flags=re.MULTILINE)
    shutil.copy(SAMPLE, tmp_path)
    run(tmp_path, code)
    heading = "untrained MobileNetV2 · 5 channels of 222×222"
    assert_line(tmp_path / "Pages" / "Conv1.png", HEADING, heading)


def draw_shown(example, folder, written):
    """Draw a page that is shown."""
    if (written / f"{example}.png").exists():
        return written / f"{example}.png"
    after_relu = example.endswith("_after_relu")
    name = example.removesuffix("_after_relu")
    model = Simple_Model(after="relu" if after_relu else "conv", layers=[name])
    scale = (0, 6) if after_relu else "channel"
    pages = Visualize(folder, scale, values=model.values, source=SAMPLE.name)
    return pages.show_each_feature_map(model.get_feature_map(SAMPLE))[0]


@pytest.mark.parametrize("example", sorted(SHOWN))
def test_shown_pages_are_what_the_tool_draws(tmp_path, written, example):
    files = draw_shown(example, tmp_path, written), ROOT / "examples" / f"{example}.png"
    drawn, shown = (np.asarray(Image.open(file), int) for file in files)
    assert drawn.shape == shown.shape
    different = (drawn != shown) & ((drawn < 239) | (shown < 239))  # greys are text
    assert np.abs(drawn - shown)[different].max(initial=0) <= 1  # processors round differently
    assert different.mean() < 1e-3


def test_all_example_pages_are_shown():
    assert {path.stem for path in ROOT.glob("examples/*.png")} == SHOWN


def test_options_are_those_of_the_command(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    known = set(re.findall(r"^  (--\w+)", capsys.readouterr().out, re.MULTILINE))
    assert known == set(re.findall(r"^\| `(--\w+)", README, re.MULTILINE))


def test_links_lead_somewhere():
    for folder, text in ((ROOT, README), (ROOT / "examples", EXAMPLES)):
        links = re.findall(r"\]\(([\w./]+)\)", text) + re.findall(r'src="([\w./]+)"', text)
        assert links
        assert [link for link in links if not (folder / link).exists()] == []
