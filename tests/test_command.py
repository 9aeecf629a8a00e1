"""The command line as a person meets it: what it prints, where, and its exit status."""

import gc
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
from conftest import ROOT, SAMPLE, described
from PIL import Image

from Model import LAYERS, URL, WEIGHTS, read_picture
from Visualize import main

FILES = {f"{name}.png" for name in (*LAYERS, "input")}
IN_A_TERMINAL = "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)"
posix = pytest.mark.skipif(os.name == "nt", reason="needs what only POSIX has")


def visualize(folder, *arguments, keras=None, terminal=False, **environment):
    """Run the command in a folder; `keras` is code to run in the place of Keras."""
    if keras:
        (folder / "fake").mkdir(exist_ok=True)
        (folder / "fake" / "keras.py").write_text(keras)
        environment["PYTHONPATH"] = str(folder / "fake")
    command = [sys.executable, "-c", IN_A_TERMINAL] * terminal
    command += [sys.executable, ROOT / "Visualize.py", *arguments]
    environment = os.environ | environment
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def refused(folder, *arguments):
    """What is said of a mistake, in one line, before Keras is loaded."""
    done = visualize(folder, *arguments, keras="raise SystemExit('Keras was loaded')")
    assert (done.returncode, done.stdout) == (2, "")
    start, _, message = done.stderr.partition("Visualize.py: error: ")
    assert (start, message[-1]) == ("", "\n")
    assert message[:-1].isprintable()
    return message


def test_the_main_job(tmp_path, pretrained):
    done = visualize(tmp_path, "--image_path", SAMPLE)
    assert done.returncode == 0
    assert done.stdout == "1 of 1 done: 26 grids and input.png each, in 'Images'\n"
    assert done.stderr == f"Loading MobileNet ...\nDrawing {str(SAMPLE)!r} (1 of 1) ...\n"
    assert {path.name for path in (tmp_path / "Images").iterdir()} == FILES
    for path in (tmp_path / "Images").iterdir():
        with Image.open(path) as picture:
            picture.load()
            assert picture.text["Source"] == "sample.jpg"
    seen = Image.open(tmp_path / "Images" / "input.png")
    np.testing.assert_array_equal(seen, read_picture(SAMPLE))
    lines = described(tmp_path / "Images" / "conv_pw_1.png")
    assert lines["weights"] == "imagenet"
    assert lines["values"].startswith("convolution output, ")


def test_many_pictures_one_of_them_bad(tmp_path):
    Image.open(SAMPLE).rotate(90).save(tmp_path / "turned.png")
    (tmp_path / "cut.jpg").write_bytes(SAMPLE.read_bytes()[:5000])
    given = ("--image_path", SAMPLE, "cut.jpg", "--image_path", "turned.png", SAMPLE)
    (tmp_path / "keras.json").write_text('{"image_data_format": "channels_first"}')
    options = "--output_dir", "out", "--weights", "none"
    done = visualize(tmp_path, *given, *options, KERAS_HOME=str(tmp_path))
    assert done.returncode == 2
    assert done.stdout == "2 of 3 done: 26 grids and input.png each, in 'out'\n"
    assert [line.partition(" (")[0] for line in done.stderr.splitlines()] == [
        "Loading MobileNet ...",
        f"Drawing {str(SAMPLE)!r}",
        "Drawing 'cut.jpg'",
        "Visualize.py: error: cannot read picture 'cut.jpg'",
        "Drawing 'turned.png'",
    ]
    files = {str(path.relative_to(tmp_path / "out")) for path in tmp_path.glob("out/*/*")}
    assert files == {os.path.join(name, file) for name in ("sample", "turned") for file in FILES}
    sample, turned = (Image.open(path) for path in sorted(tmp_path.glob("out/*/conv_dw_1.png")))
    assert turned.text["Source"] == "turned.png"
    assert "untrained" in turned.text["Title"]
    assert not np.array_equal(sample, turned)


@posix
def test_a_bar_on_a_terminal_and_a_failure_below_it(tmp_path):
    Image.open(SAMPLE).save(tmp_path / "b.png")
    (tmp_path / "Images" / "b" / "conv_dw_5.png").mkdir(parents=True)  # so no picture can go there
    job = "--image_path", SAMPLE, "b.png", "--weights", "none"
    done = visualize(tmp_path, *job, terminal=True)
    assert done.returncode == 1
    assert done.stdout.startswith("Loading MobileNet ...")
    assert [bar in done.stdout for bar in ("0/2", "1/2", "2/2")] == [True, True, False]
    error = "\x1b[KVisualize.py: error: cannot write 'Images/b/conv_dw_5.png': Is a directory\n"
    assert done.stdout.endswith(error)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.jpg"], "picture 'no.jpg' (No such file or directory): check the path"),
        (["."], "picture '.' (Is a directory): check the path"),
        ([__file__], "cannot identify"),
        (["n" * 300], "cannot read picture"),
        (["loop"], "cannot read picture 'loop'"),
        (["no\x1b[2J\n\u202e.jpg"], "no"),
        (["a/Bird.jpg", "b/bird.png"], "'a/Bird.jpg' and 'b/bird.png' would share"),
        (["link.png", "--output_dir", "x/.."], "sample.jpg' would be overwritten"),
        ([SAMPLE, "--cmap", "virdis"], "viridis"),
        ([SAMPLE, "--scale", "big"], "invalid choice: 'big'"),
        ([SAMPLE, "--after", "end"], "invalid choice: 'end'"),
        ([SAMPLE, "--weights", "no.h5"], "no weights file 'no.h5'"),
        ([SAMPLE, "--weights", os.devnull], "no weights file"),
        ([SAMPLE, "--output_dir", __file__], "not a writable folder"),
        ([SAMPLE, "--output_dir", "loop/in"], "not a writable folder"),
        ([SAMPLE, "--output_dir", f"{__file__}/x"], "not a writable folder"),
        ([SAMPLE, "--bad\x1b[2J\x07"], "--bad [2J"),
    ],
)
def test_mistakes_are_told_before_keras_is_loaded(tmp_path, arguments, message):
    for link, target in (("loop", "loop"), ("link.png", "input.png"), ("input.png", SAMPLE)):
        (tmp_path / link).symlink_to(target)
    assert message in refused(tmp_path, "--image_path", *arguments)
    assert set(os.listdir(tmp_path)) == {"fake", "loop", "link.png", "input.png"}
    assert "required: --image_path" in refused(tmp_path)


@pytest.mark.parametrize(("damaged", "status"), [(True, 2), (False, 1)])
def test_weights_that_are_damaged_or_out_of_reach(tmp_path, damaged, status):
    path = tmp_path / "models" / WEIGHTS
    if damaged:
        path.parent.mkdir()
        path.write_text("half a download")
    offline = {"https_proxy": "http://127.0.0.1:9", "no_proxy": "", "NO_PROXY": ""}
    done = visualize(tmp_path, "--image_path", SAMPLE, KERAS_HOME=str(tmp_path), **offline)
    assert (done.returncode, done.stdout) == (status, "")
    error = done.stderr.splitlines()[-1]
    assert error.startswith(f"Visualize.py: error: cannot load weights file {str(path)!r} (")
    assert all(part in error for part in (URL, "delete it", "--weights FILE", "--weights none"))
    assert not (tmp_path / "Images").exists()


@posix
@pytest.mark.parametrize(
    ("failure", "status", "error"),
    [
        ("raise ImportError('no\\nruntime')", 1, "cannot load Keras and TensorFlow (no runtime): "),
        ("os.abort()", -6, None),
    ],
)
def test_messages_of_a_failed_load_are_not_lost(tmp_path, failure, status, error):
    keras = f"import os; os.write(2, b'native line\\n'); {failure}"
    done = visualize(tmp_path, "--image_path", SAMPLE, keras=keras)
    assert (done.returncode, done.stdout) == (status, "")
    loading, native, *errors = done.stderr.splitlines()
    assert (loading, native, len(errors)) == ("Loading MobileNet ...", "native line", bool(error))
    assert not error or errors[0].startswith(f"Visualize.py: error: {error}")


def test_interrupt(tmp_path):
    done = visualize(tmp_path, "--image_path", SAMPLE, keras="raise KeyboardInterrupt")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Loading MobileNet ...\n")


def test_main_in_python_leaves_the_process_as_it_was(tmp_path, capsys):
    def state():
        kept = sys.stdout, sys.stderr, dict(os.environ), gc.get_threshold(), gc.get_freeze_count()
        return (*kept, list(warnings.filters), os.getcwd())

    job = ["--image_path", str(SAMPLE), "--output_dir", str(tmp_path), "--weights", "none"]
    look = ["--scale", "layer", "--cmap", "seismic", "--after", "bn", "--quiet"]
    assert main([*job, *look]) == 0
    lines = described(tmp_path / "conv_dw_2.png")
    assert lines["scale"].startswith("layer, ")
    assert lines["scale"].endswith(", seismic")
    assert lines["values"].startswith("batch-normalised, ")
    assert capsys.readouterr() == ("", "")
    before = state()  # all that is loaded by and by is there now
    assert main(job) == 0
    assert main([*job[:1], "nothing.jpg", *job[2:]]) == 2
    assert state() == before
    assert capsys.readouterr().out.startswith("1 of 1 done: ")
    assert {path.name for path in tmp_path.iterdir()} == FILES
