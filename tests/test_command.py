"""The command line as a person meets it: what it prints, where, and its exit status."""

import contextlib
import gc
import os
import subprocess
import sys
import warnings

import numpy as np
import pytest
from conftest import ROOT, SAMPLE, described
from PIL import Image
from test_model import LAYERS

from Model import read_picture
from Visualize import main

NAMES = {f"{name}.png" for name, _, _ in LAYERS} | {"input.png"}
NATIVE = "import os, signal; os.write(2, b'native line\\n'); "
# Stands in for a Keras that must not be loaded, or cannot be.
FAKES = {
    "unwanted": "raise SystemExit('Keras was loaded')",
    "broken": NATIVE + "raise ImportError('no\\nruntime')",
    "aborting": NATIVE + "os.abort()",
    "interrupted": NATIVE
    + "signal.signal(signal.SIGINT, signal.default_int_handler); "  # where it came in ignored
    "os.killpg(0, signal.SIGINT)",  # as a terminal does
}
posix = pytest.mark.skipif(os.name == "nt", reason="needs what only POSIX has")


def visualize(*arguments, keras=None, tmp_path=None, **environment):
    """Run the command; `keras` is the stand-in to run it with."""
    if keras:
        (tmp_path / "fake").mkdir(exist_ok=True)
        (tmp_path / "fake" / "keras.py").write_text(FAKES[keras])
        environment["PYTHONPATH"] = str(tmp_path / "fake")
    return subprocess.run(
        [sys.executable, ROOT / "Visualize.py", *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        start_new_session=True,  # its process group is not that of the tests
    )


def refused(tmp_path, *arguments):
    """What is said of a mistake, in one line, before Keras is loaded."""
    done = visualize(*arguments, keras="unwanted", tmp_path=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    start, _, message = done.stderr.partition("Visualize.py: error: ")
    assert start == ""
    assert message.endswith("\n")
    assert message[:-1].isprintable()
    return message


def test_the_main_job(tmp_path, pretrained):
    out = tmp_path / "new"
    done = visualize("--image_path", SAMPLE, "--output_dir", out)
    assert done.returncode == 0
    path = repr(str(SAMPLE))
    assert done.stdout == f"1 of 1 done: 26 grids and input.png each, in {str(out)!r}\n"
    assert done.stderr == f"Loading MobileNet ...\nDrawing {path} (1 of 1) ...\n"
    assert {path.name for path in out.iterdir()} == NAMES
    for path in out.iterdir():
        with Image.open(path) as picture:
            picture.load()
            assert picture.text["Source"] == "sample.jpg"
    np.testing.assert_array_equal(Image.open(out / "input.png"), read_picture(SAMPLE))
    lines = described(out / "conv_pw_1.png")
    assert lines["weights"] == "imagenet"
    assert lines["values"].startswith("convolution output, ")
    assert "tensorflow " in Image.open(out / "conv_pw_1.png").text["Software"]


def test_many_pictures_one_of_them_bad(tmp_path):
    Image.open(SAMPLE).rotate(90).save(tmp_path / "turned.png")
    (tmp_path / "cut.jpg").write_bytes(SAMPLE.read_bytes()[:5000])
    out = tmp_path / "out"
    pictures = (SAMPLE, tmp_path / "cut.jpg", tmp_path / "turned.png")
    given = ("--image_path", *pictures[:2], "--image_path", pictures[2], SAMPLE)  # twice is once
    done = visualize(*given, "--output_dir", out, "--weights", "none")
    assert done.returncode == 2
    assert done.stdout == f"2 of 3 done: 26 grids and input.png each, in {str(out)!r}\n"
    loading, first, second, error, third = done.stderr.splitlines()
    assert loading == "Loading MobileNet ..."
    for number, line in enumerate((first, second, third), 1):
        assert line == f"Drawing {str(pictures[number - 1])!r} ({number} of 3) ..."
    assert error.startswith("Visualize.py: error: ")
    assert "cut.jpg" in error
    assert "truncated" in error
    assert {path.name for path in out.iterdir()} == {"sample", "turned"}
    for folder in out.iterdir():
        assert {path.name for path in folder.iterdir()} == NAMES
    with Image.open(out / "turned" / "conv_pw_3.png") as picture:
        assert picture.text["Source"] == "turned.png"
        assert "untrained" in picture.text["Title"]
    sample, turned = (Image.open(out / name / "conv_dw_1.png") for name in ("sample", "turned"))
    assert not np.array_equal(sample, turned)


def test_quiet_and_in_another_look(tmp_path):
    look = ["--scale", "layer", "--cmap", "seismic", "--after", "bn", "--quiet"]
    options = ["--output_dir", tmp_path, "--weights", "none"]
    done = visualize("--image_path", SAMPLE, *options, *look)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    lines = described(tmp_path / "conv_dw_2.png")
    assert (lines["scale"][:7], lines["scale"][-7:]) == ("layer, ", "seismic")
    assert lines["values"].startswith("batch-normalised")


@posix
@pytest.mark.parametrize("fails", [False, True])
def test_a_bar_on_a_terminal(tmp_path, fails):
    if fails:
        (tmp_path / "conv_dw_5.png").mkdir()  # where no picture can be moved to
    reader, terminal = os.openpty()
    command = [sys.executable, ROOT / "Visualize.py", "--image_path", SAMPLE]
    command += ["--output_dir", tmp_path, "--weights", "none"]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=terminal)
    os.close(terminal)
    shown = b""
    with contextlib.suppress(OSError):  # Linux's way to say that the terminal has been left
        while part := os.read(reader, 4096):
            shown += part
    os.close(reader)
    assert running.wait() == fails
    shown = shown.decode()
    assert shown.startswith("Loading MobileNet ...")
    assert "0/1" in shown
    assert ("1/1" in shown, "error" in shown) == (not fails, fails)
    if fails:
        assert "\r\x1b[KVisualize.py: error: cannot write '" in shown
        assert shown.endswith("conv_dw_5.png': Is a directory\r\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: --image_path"),
        (["nothing.jpg"], "cannot read picture 'nothing.jpg' (No such file"),
        ([__file__], "cannot identify"),
        (["a/Bird.jpg", "b/bird.png"], "'a/Bird.jpg' and 'b/bird.png' would share"),
        ([str(SAMPLE), "--cmap", "virdis"], "viridis"),
        ([str(SAMPLE), "--scale", "big"], "invalid choice: 'big'"),
        ([str(SAMPLE), "--after", "end"], "invalid choice: 'end'"),
        ([str(SAMPLE), "--weights", "no.h5"], "no weights file 'no.h5'"),
        ([str(SAMPLE), "--output_dir", __file__], "not a writable folder"),
        ([str(SAMPLE), "--output_dir", f"{__file__}/x"], "not a writable folder"),
        ([str(SAMPLE), "--bad\x1b[2J\x07"], "--bad [2J"),
        (["no\x1b[2J\n\u202e.jpg"], "no"),
        (["a\x1b[2J/b.jpg", "c/b.png"], "would share"),
        (["n" * 300], "cannot read picture"),
    ],
)
def test_mistakes_are_told_before_keras_is_loaded(tmp_path, arguments, message):
    if "--output_dir" not in arguments:
        arguments = [*arguments, "--output_dir", str(tmp_path / "out")]
    if message != "required: --image_path":
        arguments = ["--image_path", *arguments]
    assert message in refused(tmp_path, *arguments)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["conv_pw_1.png", "input.png"])
def test_a_picture_is_not_overwritten(tmp_path, name):
    Image.open(SAMPLE).save(tmp_path / name)
    (tmp_path / "link.png").symlink_to(name)
    old = (tmp_path / name).read_bytes()
    for picture in (name, "link.png"):
        arguments = ["--image_path", tmp_path / picture, "--output_dir", tmp_path / "x" / ".."]
        assert "would be overwritten" in refused(tmp_path, *arguments)
    assert (tmp_path / name).read_bytes() == old


@posix
def test_a_pipe_as_weights_and_loops_of_symbolic_links(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    job = ["--image_path", SAMPLE, "--output_dir"]
    message = refused(tmp_path, *job, tmp_path / "out", "--weights", tmp_path / "pipe")
    assert "no weights file" in message
    assert "loop" in refused(tmp_path, "--image_path", tmp_path / "loop")
    for folder in ("loop", "loop/in"):
        assert "not a writable folder" in refused(tmp_path, *job, tmp_path / folder)


@pytest.mark.parametrize("cached", [False, True])
def test_damaged_weights(tmp_path, cached):
    damaged = tmp_path / "models" / "mobilenet_1_0_224_tf_no_top.h5"
    damaged.parent.mkdir()
    damaged.write_text("half a download")
    options = [] if cached else ["--weights", damaged]
    out = tmp_path / "out"
    home = {"KERAS_HOME": str(tmp_path)}
    done = visualize("--image_path", SAMPLE, "--output_dir", out, *options, **home)
    assert done.returncode == 2
    _, error = done.stderr.splitlines()
    assert error.startswith(f"Visualize.py: error: cannot load weights file {str(damaged)!r}")
    assert "delete it" in error
    assert not out.exists()


def test_offline_with_an_empty_cache(tmp_path):
    proxy = {"https_proxy": "http://127.0.0.1:9", "no_proxy": "", "NO_PROXY": ""}
    arguments = ["--image_path", SAMPLE, "--output_dir", tmp_path / "out"]
    done = visualize(*arguments, KERAS_HOME=str(tmp_path), **proxy)
    assert (done.returncode, done.stdout) == (1, "")
    error = done.stderr.splitlines()[-1]
    assert error.startswith("Visualize.py: error: ")
    for part in ("https://storage.", str(tmp_path / "models"), "--weights FILE", "--weights none"):
        assert part in error


@posix
@pytest.mark.parametrize(
    ("keras", "status", "error"),
    [
        ("broken", 1, "cannot load Keras and TensorFlow (no runtime): run 'pip install"),
        ("aborting", -6, None),
    ],
)
def test_messages_of_a_failed_load_are_not_lost(tmp_path, keras, status, error):
    arguments = ["--image_path", SAMPLE, "--output_dir", tmp_path / "out"]
    done = visualize(*arguments, keras=keras, tmp_path=tmp_path)
    lines = done.stderr.splitlines()
    assert (done.returncode, lines[:2]) == (status, ["Loading MobileNet ...", "native line"])
    if error:
        assert len(lines) == 3
        assert lines[2].startswith(f"Visualize.py: error: {error}")


@posix
def test_interrupt(tmp_path):
    arguments = ["--image_path", SAMPLE, "--output_dir", tmp_path / "out"]
    done = visualize(*arguments, keras="interrupted", tmp_path=tmp_path)
    assert (done.returncode, done.stdout) == (130, "")
    assert "Traceback" not in done.stderr


def test_main_in_python_leaves_the_process_as_it_was(tmp_path, capsys):
    def state():
        kept = sys.stdout, sys.stderr, dict(os.environ), gc.get_threshold(), gc.get_freeze_count()
        return (*kept, list(warnings.filters), os.getcwd())

    options = ["--output_dir", str(tmp_path), "--weights", "none"]
    assert main(["--image_path", str(SAMPLE), *options, "--quiet"]) == 0  # loads what it needs
    before = state()
    assert main(["--image_path", str(SAMPLE), *options]) == 0
    assert state() == before
    assert capsys.readouterr().out.startswith("1 of 1 done: ")
    assert main(["--image_path", "nothing.jpg", *options]) == 2
    assert state() == before
    assert {path.name for path in tmp_path.iterdir()} == NAMES
