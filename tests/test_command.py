"""The command line as a person meets it: what it prints, where, and its exit status."""

import gc
import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT, SAMPLE, described
from PIL import Image

from Model import LAYERS, WEIGHTS, WEIGHTS_URL, read_picture
from Visualize import main

FILES = {f"{name}.png" for name in (*LAYERS, "network_input")}
IN_A_TERMINAL = "import pty, sys; sys.exit(pty.spawn(sys.argv[1:]) >> 8)"
posix = pytest.mark.skipif(os.name == "nt", reason="needs what only POSIX has")


def visualize(folder, *arguments, keras=None, **options):
    """Run the command in a folder; `keras` is code to run in the place of Keras."""
    environment = os.environ | options.pop("environment", {})
    if keras:
        (folder / "fake").mkdir(exist_ok=True)
        (folder / "fake" / "keras.py").write_text(keras)
        environment["PYTHONPATH"] = str(folder / "fake")
    command = [*options.pop("before", []), sys.executable, ROOT / "Visualize.py", *arguments]
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    return subprocess.run(
        command, cwd=folder, env=environment, encoding="utf-8", errors="replace", **options
    )


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
    assert done.stdout == "1 of 1 pictures drawn: 26 pages and network_input.png each\n"
    drawing = f"Drawing {str(SAMPLE)!r} (1 of 1) into 'Images' ...\n"
    assert done.stderr == f"Loading MobileNet ...\n{drawing}"
    assert done.returncode == 0
    assert {path.name for path in (tmp_path / "Images").iterdir()} == FILES
    for path in (tmp_path / "Images").iterdir():
        with Image.open(path) as picture:
            picture.load()
            assert picture.text["Source"] == "sample.jpg"
    seen = Image.open(tmp_path / "Images" / "network_input.png")
    np.testing.assert_array_equal(seen, read_picture(SAMPLE))
    assert described(tmp_path / "Images" / "conv_pw_1.png")["values"] == "convolution output"


def test_many_pictures_one_of_them_bad(tmp_path):
    Image.open(SAMPLE).rotate(90).save(tmp_path / "turned.png")
    Image.open(SAMPLE).save(tmp_path / "upright.png")
    (tmp_path / "cut.jpg").write_bytes(SAMPLE.read_bytes()[:5000])
    given = ("--image_path", "upright.png", "cut.jpg", "--image_path", "turned.png", "upright.png")
    (tmp_path / "keras.json").write_text('{"image_data_format": "channels_first"}')
    options = "--output_dir", "out", "--weights", "none"
    done = visualize(tmp_path, *given, *options, environment={"KERAS_HOME": str(tmp_path)})
    assert done.returncode == 2
    assert done.stdout.startswith("2 of 3 pictures drawn: ")
    assert [line.partition(" (")[0] for line in done.stderr.splitlines()] == [
        "Loading MobileNet ...",
        "Drawing 'upright.png'",
        "Visualize.py: error: cannot read picture 'cut.jpg'",
        "Drawing 'turned.png'",
    ]
    files = {path.relative_to(tmp_path / "out").as_posix() for path in tmp_path.glob("out/*/*")}
    assert files == {f"{name}/{file}" for name in ("upright", "turned") for file in FILES}
    turned, upright = (Image.open(path) for path in sorted(tmp_path.glob("out/*/conv_dw_1.png")))
    assert turned.text["Source"] == "turned.png"
    assert "untrained weights" in turned.text["Title"]
    assert not np.array_equal(upright, turned)


@posix
def test_progress_on_a_terminal(tmp_path):
    try:
        for end in os.openpty():
            os.close(end)
    except OSError as error:
        pytest.skip(f"this machine has no pseudo-terminals: {error}")
    Image.open(SAMPLE).save(tmp_path / "b.png")
    (tmp_path / "Images" / "b" / "conv_dw_5.png").mkdir(parents=True)  # so no page can go there
    job = "--image_path", "a.png", "b.png", "--weights", "none"
    done = visualize(tmp_path, *job, before=[sys.executable, "-c", IN_A_TERMINAL])
    assert done.returncode == 1
    *_, drawing, error = done.stdout.split("\n\x1b[K")  # Python reads \r as \n
    assert drawing == "Drawing 'b.png' (2 of 2) into 'Images/b' ..."
    assert error == ("Visualize.py: error: cannot write 'Images/b/conv_dw_5.png': Is a directory\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.jpg"], "picture 'no.jpg' (No such file or directory): check the path"),
        (["no*.jpg"], "picture 'no*.jpg' (No such file or directory): check the path or pattern"),
        ([__file__], "save it again as a PNG or JPEG"),
        (["n" * 300], "cannot read picture"),
        (["a/bird.jpg", "a/bird.png"], "'a/bird.png' and another would share"),
        ([SAMPLE, "--cmap", "virdis"], "viridis"),
        ([SAMPLE, "--scale", "big"], "invalid choice: 'big'"),
        ([SAMPLE, "--after", "end"], "invalid choice: 'end'"),
        ([SAMPLE, "--bad\x1b[2J\x07"], "--bad"),
    ],
)
def test_mistakes_are_told_before_keras_is_loaded(tmp_path, arguments, message):
    assert message in refused(tmp_path, "--image_path", *arguments)
    assert os.listdir(tmp_path) == ["fake"]


@posix
@pytest.mark.parametrize(("path", "reason"), [(".", "Is a directory"), ("loop", "Too many levels")])
def test_what_is_no_file(tmp_path, path, reason):
    (tmp_path / "loop").symlink_to("loop")
    assert reason in refused(tmp_path, "--image_path", path)


@pytest.mark.parametrize("arguments", [[], ["bird.jpg"]])
def test_a_forgotten_option_is_told(tmp_path, arguments):
    assert "type: python Visualize.py --image_path PICTURE" in refused(tmp_path, *arguments)


@posix
def test_nothing_of_a_persons_own_is_overwritten(tmp_path):
    own = tmp_path / "network_input.png"
    Image.new("RGB", (12, 8)).save(own)
    for content in (own.read_bytes(), b"no picture"):
        own.write_bytes(content)
        assert "would be lost" in refused(tmp_path, "--image_path", SAMPLE, "--output_dir", ".")
        assert own.read_bytes() == content
    (tmp_path / "conv_dw_1.png").symlink_to(SAMPLE)
    own.unlink()
    assert "would be lost" in refused(tmp_path, "--image_path", SAMPLE, "--output_dir", "x/..")
    assert sorted(os.listdir(tmp_path)) == ["conv_dw_1.png", "fake"]


def test_the_network_input_of_an_earlier_run_is_replaced_when_pages_are(tmp_path):
    shutil.copy(SAMPLE, tmp_path)
    Image.open(SAMPLE).rotate(90).save(tmp_path / "turned.png")
    job = "--output_dir", ".", "--weights", "none", "--quiet", "--image_path"
    seen = tmp_path / "network_input.png"
    for picture in (SAMPLE.name, "turned.png"):
        assert visualize(tmp_path, *job, picture).returncode == 0
        assert Image.open(seen).text["Source"] == picture
    assert visualize(tmp_path, *job, SAMPLE, keras="raise ImportError").returncode == 1
    assert Image.open(seen).text["Source"] == "turned.png"


@pytest.mark.parametrize(
    ("pictures", "arguments", "folders"),
    [
        (["cats/1.png", "dogs/1.png", "2.png"], ["*/*.png", "2.png"], ["2", "cats/1", "dogs/1"]),
        (["cats/1.png"], ["cats/*.png"], ["."]),
        (["a[1].png", "2.png"], ["a[1].png"], ["."]),
    ],
)
def test_folders_mirror_those_of_the_pictures(tmp_path, pictures, arguments, folders):
    for picture in pictures:
        path = tmp_path / picture
        path.parent.mkdir(exist_ok=True)
        Image.open(SAMPLE).save(path)
    job = "--image_path", *arguments, "--output_dir", "out", "--weights", "none", "--quiet"
    done = visualize(tmp_path, *job)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    drawn = (tmp_path / "out").rglob("conv_pw_13.png")
    assert sorted(path.parent.relative_to(tmp_path / "out").as_posix() for path in drawn) == folders


@posix
def test_a_picture_from_a_pipe(tmp_path):
    job = "--image_path", "/dev/stdin", "--weights", "none"
    done = visualize(tmp_path, *job, before=["sh", "-c", 'cat "$0" | "$@"', SAMPLE])
    assert done.returncode == 0, done.stderr
    seen = Image.open(tmp_path / "Images" / "network_input.png")
    np.testing.assert_array_equal(seen, read_picture(SAMPLE))


@posix
def test_the_last_line_cannot_fail(tmp_path):
    job = "--image_path", SAMPLE, "--weights", "none", "--output_dir", "图片"
    done = visualize(tmp_path, *job, environment={"PYTHONIOENCODING": "cp1252"})
    assert (done.returncode, done.stdout[:6]) == (0, "1 of 1")
    closed = visualize(tmp_path, *job, before=["sh", "-c", '"$0" "$@" >&-'])
    assert (closed.returncode, "rror" in closed.stderr) == (0, False)
    if Path("/dev/full").exists():
        with open("/dev/full", "w") as full:
            done = visualize(tmp_path, *job, stdout=full)
        assert (done.returncode, "rror" in done.stderr) == (0, False)


def test_weights_out_of_reach(tmp_path):
    offline = {"https_proxy": "http://127.0.0.1:9", "no_proxy": "", "NO_PROXY": ""}
    environment = offline | {"KERAS_HOME": str(tmp_path)}
    done = visualize(tmp_path, "--image_path", SAMPLE, environment=environment)
    assert (done.returncode, done.stdout) == (1, "")
    error = done.stderr.splitlines()[-1]
    assert error.startswith("Visualize.py: error: cannot download the weights (")
    assert error.endswith(", or use --weights none")
    assert f"save {WEIGHTS_URL} in {str(tmp_path / 'models')!r}" in error
    assert len(error) - len(str(tmp_path)) < 250
    assert error.count(WEIGHTS_URL) == 1
    done = visualize(tmp_path, "--image_path", SAMPLE, "--weights", "none.h5")
    assert done.returncode == 2
    assert done.stderr.endswith("error: no such weights file: 'none.h5'\n")
    assert list(tmp_path.glob("**/*.png")) == []


def test_keras_own_weights_that_cannot_be_loaded(tmp_path):
    path = tmp_path / "models" / WEIGHTS
    path.parent.mkdir()
    path.write_text("half a download")
    environment = {"KERAS_HOME": str(tmp_path)}
    done = visualize(tmp_path, "--image_path", SAMPLE, environment=environment)
    assert (done.returncode, done.stdout) == (1, "")
    error = done.stderr.splitlines()[-1]
    assert error.startswith(f"Visualize.py: error: cannot load weights {str(path)!r} (")
    assert "wait if another program is downloading or using the file" in error
    assert error.endswith("delete it if it is damaged")
    assert len(error) - len(str(tmp_path)) < 250


def test_messages_of_a_failed_load_are_not_lost(tmp_path):
    keras = "import os; os.write(2, b'native line\\n'); raise ImportError('no\\nruntime')"
    done = visualize(tmp_path, "--image_path", SAMPLE, keras=keras)
    assert (done.returncode, done.stdout) == (1, "")
    loading, native, error = done.stderr.splitlines()
    assert (loading, native) == ("Loading MobileNet ...", "native line")
    assert error.startswith("Visualize.py: error: cannot load TensorFlow (no")


def test_the_gpu_is_left_alone_unless_a_person_chooses(tmp_path):
    keras = "import os; raise ImportError(os.environ['CUDA_VISIBLE_DEVICES'])"
    for environment, told in (({}, "(-1)"), ({"CUDA_VISIBLE_DEVICES": "3"}, "(3)")):
        done = visualize(tmp_path, "--image_path", SAMPLE, keras=keras, environment=environment)
        assert told in done.stderr


def test_interrupt(tmp_path):
    done = visualize(tmp_path, "--image_path", SAMPLE, keras="raise KeyboardInterrupt")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Loading MobileNet ...\n")


def test_options_reach_the_pages(tmp_path, capsys):
    job = ["--image_path", str(SAMPLE), "--output_dir", str(tmp_path), "--weights", "none"]
    assert main([*job, "--scale", "layer", "--cmap", "seismic", "--after", "bn", "--quiet"]) == 0
    assert described(tmp_path / "conv_dw_2.png")["colormap"] == "seismic"
    assert described(tmp_path / "conv_dw_2.png")["values"].startswith("batch-normalised")
    assert main([*job, "--scale", "layer", "--after", "relu", "--quiet"]) == 0
    assert described(tmp_path / "conv_dw_2.png")["colormap"] == "viridis"
    assert described(tmp_path / "conv_dw_2.png")["scale"].endswith("0 to 6")
    assert capsys.readouterr() == ("", "")


def test_main_in_python_leaves_the_process_as_it_was(tmp_path):
    def state():
        kept = sys.stdout, sys.stderr, dict(os.environ), gc.get_threshold(), gc.get_freeze_count()
        return (*kept, list(warnings.filters), os.getcwd())

    job = ["--image_path", str(SAMPLE), "--output_dir", str(tmp_path), "--weights", "none"]
    assert main(job) == 0
    before = state()  # all that is loaded by and by is there now
    assert main(job) == 0
    assert main([*job[:1], "nothing.jpg", *job[2:]]) == 2
    assert state() == before
