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
from conftest import ROOT, SAMPLE, described
from PIL import Image

from Model import LAYERS, WEIGHTS_FOLDER, read_picture
from Visualize import main, plan_folders, refuse_overwriting

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
    assert usage in (
        [],
        ["usage: python Visualize.py --image_path PICTURE [PICTURE ...] [options]"],
    )
    start, _, message = error.partition("Visualize.py: error: ")
    assert start == ""
    assert message.isprintable()
    return message


def test_the_main_job(tmp_path, pretrained):
    done = visualize(tmp_path, "--image_path", SAMPLE)
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "Loading MobileNet ...",
        f"Drawing {str(SAMPLE)!r} (1 of 1) into 'Images' ...",
        "1 of 1 pictures drawn, into 'Images'",
    ]
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
    assert [line[:49] for line in done.stderr.splitlines()] == [
        "Loading MobileNet ...",
        "Drawing 'upright.png' (1 of 3) into 'out/upright'"[:49],
        "Visualize.py: error: cannot read picture 'cut.jpg': image"[:49],
        "Drawing 'turned.png' (2 of 3) into 'out/turned' ..."[:49],
        "2 of 3 pictures drawn, into 'out'",
    ]
    files = {path.relative_to(tmp_path / "out").as_posix() for path in tmp_path.glob("out/*/*")}
    assert files == {f"{name}/{file}" for name in ("upright", "turned") for file in FILES}
    turned, upright = (Image.open(path) for path in sorted(tmp_path.glob("out/*/conv_dw_1.png")))
    assert turned.text["Source"] == "turned.png"
    assert "untrained weights" in turned.text["Title"]
    assert not np.array_equal(upright, turned)


@posix
def test_a_page_that_cannot_be_written(tmp_path):
    (tmp_path / "Images" / "conv_dw_5.png").mkdir(parents=True)
    done = visualize(tmp_path, "--image_path", SAMPLE, "--weights", "none")
    assert done.returncode == 1
    error = done.stderr.splitlines()[-1]
    assert error == "Visualize.py: error: cannot write 'Images/conv_dw_5.png': Is a directory"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["no.jpg"], "cannot read picture 'no.jpg': No such file or directory"),
        (["no*.jpg"], "cannot read picture 'no*.jpg': No such file or directory"),
        ([__file__], "test_command.py': cannot identify image file"),
        (["n" * 300], "cannot read picture"),
        (["a/bird.jpg", "a/bird.png"], "'a/bird.png' and another would share"),
        ([SAMPLE, "--cmap", "virdis"], "viridis"),
        ([SAMPLE, "--scale", "big"], "invalid choice: 'big'"),
        ([SAMPLE, "--after", "end"], "invalid choice: 'end'"),
        ([SAMPLE, "--weights", "none.h5"], "no such weights file: 'none.h5'"),
        ([SAMPLE, "--bad"], "--bad"),
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


@posix
def test_a_folder_that_cannot_be_made_is_told_before_keras_is_loaded(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("nowhere")
    for name in ("file", "link"):
        message = refused(tmp_path, "--image_path", SAMPLE, "--output_dir", name, status=1)
        assert message.endswith(f"File exists: {name!r}")
    if os.getuid() == 0:
        pytest.skip("root may write everywhere")
    (tmp_path / "closed").mkdir(mode=0o500)
    message = refused(tmp_path, "--image_path", SAMPLE, "--output_dir", "closed", status=1)
    assert message == "cannot write into 'closed'"


@pytest.mark.parametrize("arguments", [[], ["bird.jpg"]])
def test_a_forgotten_option_is_told(tmp_path, arguments):
    assert "the following arguments are required: --image_path" in refused(tmp_path, *arguments)


@posix
def test_no_picture_is_overwritten_by_its_own_pages(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("conv_dw_1.png", "network_input.png"):
        shutil.copy(SAMPLE, tmp_path / name)
        (tmp_path / "link.png").symlink_to(name)
        for given in (name, "link.png"):
            arguments = ("--image_path", given, "--output_dir", "sub/..")
            assert f"{given!r} would be overwritten" in refused(tmp_path, *arguments)
        (tmp_path / "link.png").unlink()
        assert (tmp_path / name).read_bytes() == SAMPLE.read_bytes()


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


def test_a_picture_that_is_named_twice_is_drawn_once(tmp_path):
    assert plan_folders(["a.jpg", "./a.jpg"], tmp_path) == {tmp_path: "./a.jpg"}


def test_planning_looks_at_each_picture_a_few_times_only(tmp_path, monkeypatch):
    looked_at = []
    realpath = os.path.realpath
    monkeypatch.setattr(os.path, "realpath", lambda path: looked_at.append(path) or realpath(path))
    pictures = [f"{number}.jpg" for number in range(1000)]
    folders = plan_folders(pictures, tmp_path)
    refuse_overwriting(folders)
    assert list(folders.values()) == pictures
    assert len(looked_at) <= 2 * len(pictures)


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
    assert (done.returncode, done.stdout) == (1, "")
    error = done.stderr.splitlines()[-1]
    assert error.startswith("Visualize.py: error: cannot load weights 'imagenet' (")
    assert f"): download {WEIGHTS_FOLDER}/{WEIGHTS} with a browser" in error
    assert "(--weights)" in error
    assert len(error) <= 300
    assert list(tmp_path.glob("**/*.png")) == []


def test_keras_own_weights_that_cannot_be_loaded(tmp_path):
    path = tmp_path / "models" / WEIGHTS
    path.parent.mkdir()
    path.write_text("half a download")
    environment = {"KERAS_HOME": str(tmp_path)}
    done = visualize(tmp_path, "--image_path", SAMPLE, environment=environment)
    assert (done.returncode, done.stdout) == (1, "")
    error = done.stderr.splitlines()[-1]
    assert error.startswith("Visualize.py: error: cannot load weights 'imagenet' (Unable to")
    assert f"): download {WEIGHTS_FOLDER}/{WEIGHTS} with a browser" in error
    assert len(error) <= 300
    assert path.exists()
    done = visualize(tmp_path, "--image_path", SAMPLE, "--weights", path)
    assert done.returncode == 2
    assert "expected those of MobileNet(" in done.stderr.splitlines()[-1]


def test_only_what_native_code_says_while_it_loads_is_hidden(tmp_path):
    keras = "import os; os.write(2, b'native line\\n'); raise ImportError('no runtime')"
    done = visualize(tmp_path, "--image_path", SAMPLE, keras=keras)
    assert (done.returncode, done.stdout) == (1, "")
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
def test_sigterm_leaves_nothing_beside_the_pages(tmp_path):
    Image.open(SAMPLE).save(tmp_path / "1.png")
    for number in range(2, 40):
        shutil.copy(tmp_path / "1.png", tmp_path / f"{number}.png")
    job = "--image_path", "*.png", "--output_dir", "out", "--weights", "none", "--quiet"
    process = subprocess.Popen(**command_line(tmp_path, *job), stderr=subprocess.PIPE)
    while len(list(tmp_path.glob("out/*/*.png"))) < 60:
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, messages = process.communicate()
    assert (process.returncode, messages) == (130, b"")
    for folder in (tmp_path / "out").iterdir():
        assert {path.name for path in folder.iterdir()} <= FILES
        for path in folder.iterdir():
            Image.open(path).load()


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
