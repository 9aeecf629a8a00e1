"""The command line as a person meets it: what it prints, where, and its exit status."""

import gc
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest
from conftest import CAPTION, HEADING, ROOT, SAMPLE, SOURCE, assert_line, heed_ctrl_c, pixels_of
from PIL import Image

from Model import LAYERS, read_picture
from Visualize import main

FILES = {f"{name}.png" for name in (*LAYERS, "network_input")}
WEIGHTS = "mobilenet_1_0_224_tf_no_top.h5"
posix = pytest.mark.skipif(os.name == "nt", reason="needs what only POSIX has")


def command_line(folder, *arguments, environment=(), keras=None, **options):
    """What `subprocess` needs to run the command; `keras` is code to run in the place of Keras."""
    environment = os.environ | dict(environment)
    if keras:
        (folder / "fake").mkdir(exist_ok=True)
        (folder / "fake" / "keras.py").write_text(keras)
        environment["PYTHONPATH"] = str(folder / "fake")
    command = [*options.pop("before", []), sys.executable, ROOT / "Visualize.py", *arguments]
    return {"args": command, "cwd": folder, "env": environment}


def visualize(folder, *arguments, **options):
    """Run the command in a folder."""
    kept = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
    return subprocess.run(**command_line(folder, *arguments, **options), **kept, errors="replace")


NO_KERAS = "raise SystemExit('Keras was loaded')"


def refused(folder, *arguments, status=2, **options):
    """What is said of a mistake, in one line, before Keras is loaded."""
    done = visualize(folder, *arguments, keras=NO_KERAS, **options)
    assert (done.returncode, done.stdout) == (status, "")
    *usage, error = done.stderr.splitlines()
    assert all(line.startswith(("usage: ", "    ")) for line in usage)
    start, _, message = error.partition("Visualize.py: error: ")
    assert start == ""
    assert message.isprintable()
    return message


def test_the_main_job(tmp_path, pretrained):
    done = visualize(tmp_path, "--image_path", SAMPLE)
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "Loading MobileNet ...",
        f"Drawing {str(SAMPLE)!r} into 'Images' ...",
        "1 of 1 pictures drawn",
    ]
    assert done.returncode == 0
    assert {path.name for path in (tmp_path / "Images").iterdir()} == FILES
    for path in (tmp_path / "Images").iterdir():
        with Image.open(path) as picture:
            picture.load()
            assert picture.text["Source"] == "sample.jpg"
    seen = Image.open(tmp_path / "Images" / "network_input.png")
    np.testing.assert_array_equal(seen, read_picture(SAMPLE))
    page = tmp_path / "Images" / "conv_pw_1.png"
    assert_line(page, HEADING, "convolution output · 64 channels of 112×112")
    assert_line(page, SOURCE, "sample.jpg")


def test_many_pictures_one_of_them_bad(tmp_path):
    Image.open(SAMPLE).rotate(90).save(tmp_path / "turned.png")
    Image.open(SAMPLE).save(tmp_path / "upright.png")
    (tmp_path / "cut.jpg").write_bytes(SAMPLE.read_bytes()[:5000])
    given = ("--image_path", "upright.png", "cut.jpg", "--image_path", "turned.png", "upright.png")
    done = visualize(tmp_path, *given, "--output_dir", "out", "--weights", "none")
    assert done.returncode == 2
    assert [line[:49] for line in done.stderr.splitlines()] == [
        "Visualize.py: error: cannot read picture 'cut.jpg': image"[:49],
        "Loading MobileNet ...",
        "Drawing 'turned.png' into 'out/turned' ...",
        "Drawing 'upright.png' into 'out/upright' ...",
        "2 of 3 pictures drawn",
    ]
    files = {path.relative_to(tmp_path / "out").as_posix() for path in tmp_path.glob("out/*/*")}
    assert files == {f"{name}/{file}" for name in ("upright", "turned") for file in FILES}
    turned, upright = sorted(tmp_path.glob("out/*/conv_dw_1.png"))
    assert_line(turned, SOURCE, "turned.png")
    assert_line(turned, HEADING, "convolution output, untrained weights · 32 channels of 112×112")
    assert not np.array_equal(pixels_of(upright), pixels_of(turned))


@posix
def test_a_page_that_cannot_be_written(tmp_path):
    (tmp_path / "Images" / "conv_dw_5.png").mkdir(parents=True)
    done = visualize(tmp_path, "--image_path", SAMPLE, "--weights", "none")
    assert done.returncode == 2
    error = done.stderr.splitlines()[-1]
    assert error.startswith("Visualize.py: error: ")
    assert "Is a directory" in error
    assert "Images/conv_dw_5.png" in error


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.jpg"], "cannot read picture 'no.jpg': [Errno 2] No such file or directory"),
        (["no*.jpg"], "cannot read picture 'no*.jpg': "),
        ([__file__], "test_command.py': cannot identify image file"),
        (["n" * 300], "cannot read picture 'nnn"),
        ([SAMPLE, "--cmap", "virdis"], "viridis"),
        ([SAMPLE, "--scale", "big"], "invalid choice: 'big'"),
        ([SAMPLE, "--after", "end"], "invalid choice: 'end'"),
        ([SAMPLE, "--bad"], "--bad"),
    ],
)
def test_mistakes_are_told_before_keras_is_loaded(tmp_path, arguments, message):
    assert message in refused(tmp_path, "--image_path", *arguments)
    assert os.listdir(tmp_path) == ["fake"]


def test_a_folder_is_no_picture(tmp_path):
    assert "cannot read picture '.'" in refused(tmp_path, "--image_path", ".")


def test_two_pictures_never_share_a_folder(tmp_path):
    for name in ("bird.jpg", "bird.png"):
        Image.open(SAMPLE).save(tmp_path / name)
    message = refused(tmp_path, "--image_path", "bird.jpg", "bird.png")
    assert message == "'bird.png' and 'bird.jpg' would share 'Images/bird'".replace("/", os.sep)


def test_a_file_in_the_place_of_the_folder(tmp_path):
    (tmp_path / "file").write_text("mine")
    job = "--image_path", SAMPLE, "--output_dir", "file", "--weights", "none"
    done = visualize(tmp_path, *job)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("Visualize.py: error: ")
    assert "'file'" in done.stderr.splitlines()[-1]
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize("arguments", [[], ["bird.jpg"]])
def test_a_forgotten_option_is_told(tmp_path, arguments):
    assert "the following arguments are required: --image_path" in refused(tmp_path, *arguments)


def test_only_files_of_its_own_are_replaced(tmp_path):
    job = "--output_dir", ".", "--weights", "none", "--layers", "conv_dw_1", "--image_path"
    for name in ("conv_dw_1.png", "network_input.png"):
        Image.open(SAMPLE).save(tmp_path / name)
        mine = (tmp_path / name).read_bytes()
        for picture in (SAMPLE, name):
            done = visualize(tmp_path, *job, picture)
            assert done.returncode == 2
            message = f"Visualize.py: error: {name!r} was not drawn here: choose another folder"
            assert done.stderr.splitlines()[-1] == message
            assert (tmp_path / name).read_bytes() == mine
        (tmp_path / name).unlink()


def test_the_network_input_of_an_earlier_run_is_replaced_when_pages_are(tmp_path):
    shutil.copy(SAMPLE, tmp_path)
    Image.open(SAMPLE).rotate(90).save(tmp_path / "turned.png")
    job = "--output_dir", ".", "--weights", "none", "--quiet", "--image_path"
    seen = tmp_path / "network_input.png"
    for picture in (SAMPLE.name, "turned.png"):
        assert visualize(tmp_path, *job, picture).returncode == 0
        assert Image.open(seen).text["Source"] == picture
    assert visualize(tmp_path, *job, SAMPLE, keras="raise ImportError").returncode == 2
    assert Image.open(seen).text["Source"] == "turned.png"


@pytest.mark.parametrize(
    ("pictures", "arguments", "folders"),
    [
        (["cats/1.png", "dogs/1.png", "2.png"], ["*/*.png", "2.png"], ["2", "cats/1", "dogs/1"]),
        (["cats/1.png"], ["cats/*.png"], ["."]),
        (["a[1].png", "a1.png"], ["a[1].png"], ["."]),
        (["a/1.png", "a/b/c/2.png", "3.png"], ["**/*.png"], ["3", "a/1", "a/b/c/2"]),
    ],
)
def test_folders_mirror_those_of_the_pictures(tmp_path, pictures, arguments, folders):
    for picture in pictures:
        path = tmp_path / picture
        path.parent.mkdir(parents=True, exist_ok=True)
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


def test_a_terminal_that_lacks_letters_and_a_home_folder(tmp_path):
    job = "--image_path", SAMPLE, "--weights", "none", "--output_dir=~/图片"
    environment = {
        "PYTHONIOENCODING": "cp1252",
        "HOME": str(tmp_path),
        "USERPROFILE": str(tmp_path),
    }
    done = visualize(tmp_path, *job, environment=environment)
    assert (done.returncode, "rror" in done.stderr) == (0, False)
    assert {path.name for path in (tmp_path / "图片").iterdir()} == FILES


def test_weights_out_of_reach(tmp_path):
    offline = {"https_proxy": "http://127.0.0.1:9", "no_proxy": "", "NO_PROXY": ""}
    environment = offline | {"KERAS_HOME": str(tmp_path)}
    done = visualize(tmp_path, "--image_path", SAMPLE, environment=environment)
    assert (done.returncode, done.stdout) == (2, "")
    error = done.stderr.splitlines()[-1]
    assert error.startswith(
        "Visualize.py: error: cannot load weights 'imagenet': URL fetch failure"
    )
    assert f"/{WEIGHTS}: " in error
    assert list(tmp_path.glob("**/*.png")) == []


def test_weights_that_cannot_be_loaded(tmp_path):
    path = tmp_path / "models" / WEIGHTS
    path.parent.mkdir()
    path.write_text("half a download")
    environment = {"KERAS_HOME": str(tmp_path)}
    for weights in ("imagenet", str(path), "none.h5"):
        job = "--image_path", SAMPLE, "--weights", weights
        done = visualize(tmp_path, *job, environment=environment)
        assert (done.returncode, done.stdout) == (2, "")
        error = done.stderr.splitlines()[-1]
        assert error.startswith(f"Visualize.py: error: cannot load weights {weights!r}: ")
    assert path.exists()


def test_an_unknown_layer(tmp_path):
    job = "--image_path", SAMPLE, "--weights", "none", "--layers", "conv_pw_99"
    done = visualize(tmp_path, *job)
    error = done.stderr.splitlines()[-1]
    assert error.startswith("Visualize.py: error: No such layer: conv_pw_99. Existing layers are:")
    assert list(tmp_path.glob("**/*.png")) == []


def test_only_what_native_code_says_while_it_loads_is_hidden(tmp_path):
    keras = "import os; os.write(2, b'native line\\n'); raise ImportError('no runtime')"
    done = visualize(tmp_path, "--image_path", SAMPLE, keras=keras)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "Loading MobileNet ...\nVisualize.py: error: no runtime\n"


def test_the_gpu_is_left_alone_unless_a_person_chooses(tmp_path):
    keras = "import os; raise ImportError(os.environ['CUDA_VISIBLE_DEVICES'])"
    for environment, told in (({}, "error: -1"), ({"CUDA_VISIBLE_DEVICES": "3"}, "error: 3")):
        done = visualize(tmp_path, "--image_path", SAMPLE, keras=keras, environment=environment)
        assert told in done.stderr


def test_interrupt(tmp_path):
    done = visualize(tmp_path, "--image_path", SAMPLE, keras="raise KeyboardInterrupt")
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "Loading MobileNet ...\n")


@posix
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_run_that_is_stopped_leaves_whole_pages(tmp_path, end):
    for number in range(30):
        Image.open(SAMPLE).rotate(number).save(tmp_path / f"{number}.png")
    job = "--image_path", "*.png", "--output_dir", "out", "--weights", "none", "--quiet"
    process = subprocess.Popen(
        **command_line(tmp_path, *job), stderr=subprocess.PIPE, preexec_fn=heed_ctrl_c
    )
    while len(list(tmp_path.glob("out/*/*.png"))) < 60:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(end)
    _, messages = process.communicate()
    assert (process.returncode, messages) == (130 if end == signal.SIGINT else -end, b"")
    for path in tmp_path.glob("out/*/*.png"):
        Image.open(path).load()


def test_options_reach_the_pages(tmp_path, capsys):
    job = ["--image_path", str(SAMPLE), "--output_dir", str(tmp_path), "--weights", "none"]
    job += ["--quiet", "--scale", "layer", "--layers", "conv_dw_2", "conv1"]
    assert main([*job, "--cmap", "seismic", "--after", "bn"]) == 0
    assert {path.stem for path in tmp_path.iterdir()} == {"conv_dw_2", "conv1", "network_input"}
    with Image.open(tmp_path / "conv_dw_2.png") as page:
        assert page.getpalette()[:3] == [0, 0, 76]  # seismic begins dark blue
    heading = "batch-normalised, untrained weights · 64 channels of 56×56"
    assert_line(tmp_path / "conv_dw_2.png", HEADING, heading)
    assert main([*job, "--after", "relu"]) == 0
    caption = "all tiles on one scale from 0 to 6 · 0% of the values beyond"
    assert_line(tmp_path / "conv1.png", CAPTION, caption)
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
