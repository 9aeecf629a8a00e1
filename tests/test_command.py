"""The command line as a person meets it: what it prints, where, and its exit status."""

import contextlib
import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, SAMPLE
from PIL import Image
from test_model import LAYERS

NAMES = {f"{name}.png" for name, _, _ in LAYERS}
# Stands in for a Keras that must not be loaded, or cannot be.
FAKES = {
    "unwanted": "raise SystemExit('Keras was loaded')",
    "broken": "import os; os.write(2, b'native line\\n'); raise ImportError('no\\nruntime')",
    "invalid": "import os; os.write(2, b'native line\\n'); raise ValueError('size changed')",
    "aborting": "import os; os.write(2, b'native line\\n'); os.abort()",
    "terminated": "import os, signal; os.write(2, b'native line\\n'); "
    "os.kill(os.getpid(), signal.SIGTERM)",
    "interrupted": "import os, signal; os.write(2, b'native line\\n'); "
    "signal.signal(signal.SIGINT, signal.default_int_handler); "  # where it came in ignored
    "os.killpg(0, signal.SIGINT)",  # as a terminal does
}


def visualize(*arguments, keras=None, tmp_path=None, **environment):
    """Run the command; `keras` is the stand-in to run it with."""
    if keras:
        (tmp_path / "keras.py").write_text(FAKES[keras])
        environment["PYTHONPATH"] = str(tmp_path)
    return subprocess.run(
        [sys.executable, ROOT / "Visualize.py", *arguments],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        start_new_session=True,  # its process group is not that of the tests
    )


def test_the_main_job(tmp_path, pretrained):
    done = visualize("--image_path", SAMPLE, "--output_dir", tmp_path / "new")
    assert done.returncode == 0
    assert done.stdout == f"26 grids of 'sample.jpg' saved in {str(tmp_path / 'new')!r}\n"
    assert done.stderr == "Loading MobileNet ...\n"
    assert {path.name for path in (tmp_path / "new").iterdir()} == NAMES
    for path in (tmp_path / "new").iterdir():
        with Image.open(path) as picture:
            picture.load()
            assert picture.text["Source"] == "sample.jpg"
            assert "weights: imagenet" in picture.text["Description"]


def test_many_pictures_one_of_them_bad(tmp_path):
    Image.open(SAMPLE).rotate(90).save(tmp_path / "turned.png")
    (tmp_path / "cut.jpg").write_bytes(SAMPLE.read_bytes()[:5000])
    out = tmp_path / "out"
    pictures = (SAMPLE, tmp_path / "cut.jpg", tmp_path / "turned.png")
    done = visualize("--image_path", *pictures, "--output_dir", out, "--weights", "none")
    assert done.returncode == 2
    assert done.stdout == f"52 grids of 2 pictures saved in folders of {str(out)!r}\n"
    error, loading = done.stderr.splitlines()
    assert error.startswith("Visualize.py: error: ")
    assert "cut.jpg" in error
    assert loading == "Loading MobileNet ..."
    assert {path.name for path in out.iterdir()} == {"sample", "turned"}
    for folder in out.iterdir():
        assert {path.name for path in folder.iterdir()} == NAMES
    with Image.open(out / "turned" / "conv_pw_3.png") as picture:
        assert picture.text["Source"] == "turned.png"
        assert "untrained" in picture.text["Title"]
    sample, turned = (Image.open(out / name / "conv_dw_1.png") for name in ("sample", "turned"))
    assert not np.array_equal(sample, turned)


def test_quiet_and_in_another_look(tmp_path):
    look = ["--scale", "layer", "--cmap", "seismic"]
    options = ["--output_dir", tmp_path, "--weights", "none", "--quiet"]
    done = visualize("--image_path", SAMPLE, *options, *look)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    with Image.open(tmp_path / "conv_dw_2.png") as picture:
        assert "scale: layer" in picture.text["Description"]
        assert "colormap: seismic" in picture.text["Description"]


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("fails", [False, True])
def test_a_bar_on_a_terminal(tmp_path, fails):
    if fails:
        (tmp_path / "conv_dw_5.png").mkdir()  # where no picture can be moved to
    command = [sys.executable, ROOT / "Visualize.py", "--image_path", SAMPLE]
    options = ["--output_dir", tmp_path, "--weights", "none"]
    reader, terminal = os.openpty()
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "80"}
    running = subprocess.Popen([*command, *options], stderr=terminal, env=environment)
    os.close(terminal)
    shown = b""
    with contextlib.suppress(OSError):  # Linux's way to say that the terminal has been left
        while part := os.read(reader, 4096):
            shown += part
    os.close(reader)
    assert running.wait() == fails
    shown, _, error = shown.decode().rpartition("\x1b[2K")  # the bar is taken away
    assert shown.startswith("Loading MobileNet ...")
    assert "sample.jpg" in shown
    assert "\x1b[?25h" in shown  # and the cursor is back
    if fails:
        assert error.startswith("Visualize.py: error: cannot write '")
        assert error.endswith("conv_dw_5.png': Is a directory\r\n")
    else:
        assert error == ""


def test_help_is_fast_and_complete(tmp_path):
    done = visualize("--help", keras="unwanted", tmp_path=tmp_path)
    assert done.returncode == 0
    for option in ("image_path", "output_dir", "weights", "scale", "cmap", "quiet"):
        assert f"--{option}" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "required: --image_path"),
        (["--image_path", "nothing.jpg"], "no picture 'nothing.jpg': check the path"),
        (["--image_path", str(ROOT)], "is a folder"),
        (["--image_path", __file__], "is not a picture"),
        (["--image_path", "nothing.jpg", __file__], None),
        (["--image_path", str(SAMPLE), str(SAMPLE)], "would share the folder"),
        (["--image_path", "a/Bird.jpg", "b/bird.png"], "'a/Bird.jpg' and 'b/bird.png' would share"),
        (["--image_path", str(SAMPLE), "--cmap", "virdis"], "did you mean viridis"),
        (["--image_path", str(SAMPLE), "--scale", "big"], "invalid choice: 'big'"),
        (["--image_path", str(SAMPLE), "--weights", "no.h5"], "cannot read weights file 'no.h5'"),
        (["--image_path", str(SAMPLE), "--output_dir", __file__], "is not a folder"),
        (["--image_path", str(SAMPLE), "--output_dir", f"{__file__}/x"], "is not a folder"),
        (["--image_path", str(SAMPLE), "--output_dir", ""], "output folder is empty"),
    ],
)
def test_mistakes_are_told_before_keras_is_loaded(tmp_path, arguments, message):
    if "--output_dir" not in arguments:
        arguments = [*arguments, "--output_dir", str(tmp_path / "out")]
    done = visualize(*arguments, keras="unwanted", tmp_path=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert all(line.startswith("Visualize.py: error: ") for line in lines)
    assert len(lines) == (1 if message else 2)
    assert (message or "") in lines[0]
    assert not (tmp_path / "out").exists()


def test_a_grid_does_not_replace_its_picture(tmp_path):
    picture = tmp_path / "conv_pw_1.png"
    Image.open(SAMPLE).save(picture)
    arguments = ["--image_path", picture, "--output_dir", tmp_path / "." / "x" / ".."]
    done = visualize(*arguments, keras="unwanted", tmp_path=tmp_path)
    assert done.returncode == 2
    assert "a grid would replace" in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="pipes of POSIX")
def test_a_pipe_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    done = visualize("--image_path", tmp_path / "pipe", keras="unwanted", tmp_path=tmp_path)
    assert done.returncode == 2
    assert "save the picture as a file first" in done.stderr


def test_an_environment_for_other_programs(tmp_path):
    environment = {"MPLBACKEND": "module://not_installed", "KERAS_BACKEND": "jax"}
    arguments = ["--image_path", SAMPLE, "--output_dir", tmp_path, "--weights", "none"]
    assert visualize(*arguments, **environment).returncode == 0


def test_names_of_dots_and_repeated_options(tmp_path):
    shutil.copy(SAMPLE, tmp_path / "..png")
    shutil.copy(SAMPLE, tmp_path / "...png")
    arguments = ["--image_path", tmp_path / "..png", "--image_path", tmp_path / "...png"]
    out = tmp_path / "new" / "out"
    done = visualize(*arguments, "--output_dir", out, "--weights", "none")
    assert done.returncode == 0
    assert {path.parent for path in tmp_path.rglob("conv_*.png")} == {out / "..png", out / "...png"}


def test_damaged_weights(tmp_path):
    (tmp_path / "damaged.h5").write_text("no weights")
    options = ["--weights", tmp_path / "damaged.h5", "--output_dir", tmp_path / "out"]
    done = visualize("--image_path", SAMPLE, *options)
    assert done.returncode == 2
    assert done.stderr.splitlines()[1].startswith("Visualize.py: error: weights file '")
    assert "damaged.h5" in done.stderr
    assert len(done.stderr.splitlines()) == 2
    assert not (tmp_path / "out").exists()


def test_damaged_weights_in_the_cache(tmp_path):
    cached = tmp_path / "models" / "mobilenet_1_0_224_tf_no_top.h5"
    cached.parent.mkdir()
    cached.write_text("half a download")
    done = visualize("--image_path", SAMPLE, KERAS_HOME=str(tmp_path))
    assert done.returncode == 1
    _, error = done.stderr.splitlines()
    assert str(cached) in error
    assert error.endswith("delete it and Keras fetches it anew")


def test_offline_with_an_empty_cache(tmp_path):
    proxy = {"https_proxy": "http://127.0.0.1:9", "no_proxy": "", "NO_PROXY": ""}
    done = visualize("--image_path", SAMPLE, KERAS_HOME=str(tmp_path), **proxy)
    assert done.returncode == 1
    _, error = done.stderr.splitlines()
    assert "cannot download https://storage.googleapis.com/" in error
    assert str(tmp_path / "models") in error
    assert "--weights FILE" in error
    assert "--weights none" in error


@pytest.mark.parametrize(
    ("keras", "status", "error"),
    [
        ("broken", 1, "cannot load Keras and TensorFlow: no runtime; install them"),
        ("invalid", 1, "cannot load Keras and TensorFlow: size changed; install them"),
        ("aborting", -6, None),
    ],
)
@pytest.mark.skipif(os.name == "nt", reason="exit statuses of POSIX")
def test_messages_of_a_failed_load_are_not_lost(tmp_path, keras, status, error):
    done = visualize("--image_path", SAMPLE, keras=keras, tmp_path=tmp_path)
    assert done.returncode == status
    lines = done.stderr.splitlines()
    assert lines[:2] == ["Loading MobileNet ...", "native line"]
    if error:
        assert len(lines) == 3
        assert lines[2].startswith(f"Visualize.py: error: {error}")


@pytest.mark.skipif(os.name == "nt", reason="signals of POSIX")
@pytest.mark.parametrize(("keras", "status"), [("interrupted", 130), ("terminated", 143)])
def test_interrupt_is_quiet(tmp_path, keras, status):
    done = visualize("--image_path", SAMPLE, keras=keras, tmp_path=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (status, "", "Loading MobileNet ...\n")
