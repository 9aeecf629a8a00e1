"""examples/many_pictures.py: a row for every picture, once, with the means of get_feature_map."""

import os
import signal
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, SAMPLE, heed_ctrl_c
from PIL import Image

from Model import Simple_Model

NAMES = ["1.jpg", "with a space.jpg", "50% #1?.png", "ä.jpg"]


def command_line(folder, *arguments, **environment):
    """What `subprocess` needs to run the example."""
    command = [sys.executable, ROOT / "examples" / "many_pictures.py", *arguments]
    kept = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "encoding": "utf-8"}
    return {"args": command, "cwd": folder, "env": os.environ | environment, **kept}


def many_pictures(folder, *arguments, **environment):
    pytest.importorskip("ray", reason="Ray has no wheel for this Python")
    return subprocess.run(**command_line(folder, *arguments, **environment))


def offline(folder):
    """An environment in which Keras has no weights, and cannot get them."""
    (folder / "empty").mkdir()
    proxy = {"https_proxy": "http://127.0.0.1:9", "no_proxy": "", "NO_PROXY": ""}
    return proxy | {"KERAS_HOME": str(folder / "empty")}


def means(model, path):
    (maps,) = model.get_feature_map(path).values()
    return maps.mean(axis=(0, 1, 2), dtype=np.float64)


def test_many_pictures_some_of_them_bad(tmp_path, pretrained):
    parquet = pytest.importorskip("pyarrow.parquet")
    for folder in ("pictures", "linked"):
        (tmp_path / folder).mkdir()
    (tmp_path / "pictures" / "link").symlink_to(tmp_path / "linked", target_is_directory=True)
    (tmp_path / "vectors" / "conv_dw_1").mkdir(parents=True)  # as a job does that is stopped early
    no_picture = tmp_path / "pictures" / "no picture.txt"
    no_picture.write_text("x")
    cut = tmp_path / "pictures" / "cut.jpg"
    cut.write_bytes(SAMPLE.read_bytes()[:9000])
    paths = [tmp_path / "pictures" / name for name in NAMES]
    for number, path in enumerate(paths):
        Image.open(SAMPLE).rotate(number).save(path)

    def run(status, first, bad):
        """Run the job, and check what it says of the bad files, and that each other has a row."""
        done = many_pictures(tmp_path, "pictures", "vectors", "--layer", "conv_dw_1")
        assert done.returncode == status, done.stderr
        folder = tmp_path / "vectors" / "conv_dw_1"
        assert done.stdout.splitlines() == [
            f"{first} of them not yet in {str(folder)!r}",
            f"{len(bad)} pictures failed",
        ]
        reasons = {cut: "image file is truncated", no_picture: "cannot identify image file"}
        for path in bad:
            assert f"\n{path}: {reasons[path]}" in f"\n{done.stderr}"
        rows = parquet.read_table(folder).to_pylist()
        assert sorted(row["path"] for row in rows) == sorted(map(str, paths))
        return {row["path"]: row["vector"] for row in rows}

    run(1, "6 files, 6", [cut, no_picture])
    # Now cut.jpg is there as a whole, and another picture has come.
    paths += [cut, tmp_path / "pictures" / "link" / "far.jpg"]
    for number, path in enumerate(paths[-2:]):
        Image.open(SAMPLE).rotate(180 + number).save(path)
    run(1, "7 files, 3", [no_picture])
    no_picture.unlink()
    vectors = run(0, "6 files, 0", [])
    model = Simple_Model(after="relu", layers=["conv_dw_1"])
    for path in paths:
        np.testing.assert_allclose(vectors[str(path)], means(model, path), rtol=0, atol=1e-4)


def test_a_file_of_weights(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    import keras

    network = keras.applications.MobileNet((224, 224, 3), include_top=False, weights=None)
    network.save_weights(tmp_path / "my.weights.h5")
    (tmp_path / "pictures").mkdir()
    picture = tmp_path / "pictures" / "1.png"
    Image.open(SAMPLE).save(picture)
    job = "pictures", "vectors", "--layer", "conv_dw_1", "--weights", "my.weights.h5"
    done = many_pictures(tmp_path, *job, **offline(tmp_path))
    assert done.returncode == 0, done.stderr
    (row,) = parquet.read_table(tmp_path / "vectors" / "conv_dw_1").to_pylist()
    model = Simple_Model(tmp_path / "my.weights.h5", "relu", ["conv_dw_1"])
    np.testing.assert_allclose(row["vector"], means(model, picture), rtol=0, atol=1e-4)


@pytest.mark.parametrize("options", [[], ["--weights", "none.h5"]])
def test_weights_out_of_reach_are_told_before_ray_starts(tmp_path, options):
    (tmp_path / "pictures").mkdir()
    Image.open(SAMPLE).save(tmp_path / "pictures" / "1.png")
    done = many_pictures(tmp_path, "pictures", "vectors", *options, **offline(tmp_path))
    assert done.returncode == 1
    error, advice = done.stderr.splitlines()
    weights = "none.h5" if options else "imagenet"
    assert error.startswith(f"cannot load weights {weights!r}: ")
    assert advice == "For weights of your own, give --weights FILE."
    assert not (tmp_path / "vectors").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none", "vectors"], "No such file or directory"),
        (["pictures", "vectors", "--layer", "conv_pw_99"], "No such layer: conv_pw_99"),
    ],
)
def test_mistakes_with_many_pictures(tmp_path, arguments, message, pretrained):
    (tmp_path / "pictures").mkdir()
    Image.open(SAMPLE).save(tmp_path / "pictures" / "1.png")
    done = many_pictures(tmp_path, *arguments)
    assert done.returncode == 1
    assert message in done.stderr.splitlines()[0]
    assert len(done.stderr.splitlines()) == 2
    assert not (tmp_path / "vectors").exists()


def test_without_ray(tmp_path):
    (tmp_path / "ray.py").write_text("raise ModuleNotFoundError('no Ray here')")
    done = subprocess.run(**command_line(tmp_path, ".", "vectors", PYTHONPATH=str(tmp_path)))
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("no Ray here\n")


@pytest.mark.skipif(os.name == "nt", reason="needs what only POSIX has")
def test_stopped(tmp_path):
    pytest.importorskip("ray", reason="Ray has no wheel for this Python")
    Image.open(SAMPLE).save(tmp_path / "1.png")
    job = command_line(tmp_path, ".", "vectors")
    process = subprocess.Popen(**job, start_new_session=True, preexec_fn=heed_ctrl_c)
    assert process.stdout.readline().startswith("1 files, 1 of them")
    os.killpg(process.pid, signal.SIGINT)
    _, errors = process.communicate()
    assert (process.returncode, errors) == (1, "stopped\n")
