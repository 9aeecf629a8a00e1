"""examples/many_pictures.py: a row for every file, once, with the means of get_feature_map."""

import os
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, SAMPLE
from PIL import Image

from Model import Simple_Model

NAMES = ["1.jpg", "with a space.jpg", "50% #1?.png", "ä.jpg"]


def many_pictures(folder, *arguments):
    command = [sys.executable, ROOT / "examples" / "many_pictures.py", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True)


def test_many_pictures_some_of_them_bad(tmp_path, pretrained):
    pytest.importorskip("ray", reason="Ray has no wheel for this Python")
    parquet = pytest.importorskip("pyarrow.parquet")
    for folder in ("pictures", "linked"):
        (tmp_path / folder).mkdir()
    (tmp_path / "pictures" / "link").symlink_to(tmp_path / "linked", target_is_directory=True)
    bad = [tmp_path / "pictures" / "cut.jpg", tmp_path / "pictures" / "no picture.txt"]
    bad[0].write_bytes(SAMPLE.read_bytes()[:9000])
    bad[1].write_text("no picture")
    paths = [tmp_path / "pictures" / name for name in [*NAMES, "link/far.jpg"]]
    (tmp_path / "vectors" / "conv_dw_1").mkdir(parents=True)  # as a job does that is stopped early
    # The first run does not find far.jpg, the second does it alone, and the third does nothing.
    for found in (paths[:-1], paths, paths):
        for number, path in enumerate(found):
            Image.open(SAMPLE).rotate(number).save(path)
        done = many_pictures(tmp_path, "pictures", "vectors", "--layer", "conv_dw_1")
        assert done.returncode == 0, done.stderr
        rows = parquet.read_table(tmp_path / "vectors" / "conv_dw_1").to_pylist()
        assert sorted(row["path"] for row in rows) == sorted(map(str, [*found, *bad]))
    assert f"7 files in {str(tmp_path / 'pictures')!r}, 0 of them not yet in" in done.stdout
    model = Simple_Model(after="relu", layers=["conv_dw_1"])
    rows = {row["path"]: row for row in rows}
    for path in paths:
        means = model.get_feature_map(path)[0].mean(axis=(0, 1, 2), dtype=np.float64)
        assert rows[str(path)]["error"] is None
        np.testing.assert_allclose(rows[str(path)]["vector"], means, rtol=0, atol=1e-4)
    for path in bad:
        assert rows[str(path)]["vector"] is None
        assert f"cannot read picture '{path}'" in rows[str(path)]["error"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none", "vectors"], "none'. Detail: [errno 2] No such file or directory"),
        ([".", "vectors", "--layer", "conv_pw_99"], "no layer 'conv_pw_99': choose from"),
    ],
)
def test_mistakes_with_many_pictures(tmp_path, arguments, message):
    pytest.importorskip("ray", reason="Ray has no wheel for this Python")
    done = many_pictures(tmp_path, *arguments)
    assert done.returncode == 1
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert os.listdir(tmp_path) == []
