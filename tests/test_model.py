"""The feature maps are those of Keras's MobileNet, in order, for the picture as prepared."""

import io
import subprocess
import sys

import numpy as np
import pytest
from conftest import ROOT, SAMPLE
from PIL import Image

from Model import Simple_Model

# (layer, side, channels) in network order: the table of the MobileNets paper.
LAYERS = [
    ("conv_dw_1", 112, 32),
    ("conv_pw_1", 112, 64),
    ("conv_dw_2", 56, 64),
    ("conv_pw_2", 56, 128),
    ("conv_dw_3", 56, 128),
    ("conv_pw_3", 56, 128),
    ("conv_dw_4", 28, 128),
    ("conv_pw_4", 28, 256),
    ("conv_dw_5", 28, 256),
    ("conv_pw_5", 28, 256),
    ("conv_dw_6", 14, 256),
    ("conv_pw_6", 14, 512),
    *((f"conv_{kind}_{block}", 14, 512) for block in range(7, 12) for kind in ("dw", "pw")),
    ("conv_dw_12", 7, 512),
    ("conv_pw_12", 7, 1024),
    ("conv_dw_13", 7, 1024),
    ("conv_pw_13", 7, 1024),
]


@pytest.fixture(scope="module")
def feature_maps(pretrained):
    return pretrained.get_feature_map(SAMPLE)


@pytest.fixture(scope="module")
def untrained():
    return Simple_Model(weights=None)


def test_layers_and_shapes(pretrained, feature_maps):
    assert pretrained.output_layers == [name for name, _, _ in LAYERS]
    assert pretrained.input_size == (224, 224)
    assert [fmap.shape for fmap in feature_maps] == [(1, s, s, c) for _, s, c in LAYERS]
    assert {fmap.dtype for fmap in feature_maps} == {np.dtype(np.float32)}
    assert sum(fmap.shape[-1] for fmap in feature_maps) == 10_912


def test_equal_to_the_whole_mobilenet_layer_by_layer(pretrained, feature_maps):
    import keras

    network = keras.applications.MobileNet(include_top=False, input_shape=(224, 224, 3))
    picture = Image.open(SAMPLE).resize((224, 224), Image.Resampling.BICUBIC)
    x = np.asarray(picture, np.float32)[np.newaxis] / 127.5 - 1
    expected = {}
    for layer in network.layers[1:]:
        x = layer(x)
        expected[layer.name] = keras.ops.convert_to_numpy(x)
    for name, fmap in zip(pretrained.output_layers, feature_maps, strict=True):
        np.testing.assert_allclose(fmap, expected[name], rtol=1e-4, atol=1e-4, err_msg=name)


def test_path_and_file_object_give_the_same(untrained):
    expected = untrained.get_feature_map(str(SAMPLE))
    data = SAMPLE.read_bytes()
    stream = io.BytesIO(data)
    stream.seek(7)
    with open(SAMPLE, "rb") as file:
        for source in (SAMPLE, file, file, stream):
            for fmap, other in zip(untrained.get_feature_map(source), expected, strict=True):
                np.testing.assert_array_equal(fmap, other)
        assert not file.closed
    assert stream.getvalue() == data


def test_weights_from_a_file(untrained, tmp_path):
    path = tmp_path / "mine.weights.h5"
    untrained.network.save_weights(path)
    again = Simple_Model(weights=path)
    for fmap, other in zip(
        again.get_feature_map(SAMPLE), untrained.get_feature_map(SAMPLE), strict=True
    ):
        np.testing.assert_array_equal(fmap, other)


def test_channels_first_in_the_keras_configuration(untrained):
    import keras

    keras.config.set_image_data_format("channels_first")
    try:
        shape = Simple_Model(weights=None).model.outputs[0].shape
        assert keras.config.image_data_format() == "channels_first"
    finally:
        keras.config.set_image_data_format("channels_last")
    assert shape == (None, 112, 112, 32)


def test_half_precision_in_the_keras_configuration():
    import keras

    keras.config.set_floatx("float16")
    try:
        maps = Simple_Model(weights=None).get_feature_map(SAMPLE)
    finally:
        keras.config.set_floatx("float32")
    assert {fmap.dtype for fmap in maps} == {np.dtype(np.float32)}


def test_weights_that_are_not_there(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.h5"):
        Simple_Model(weights=tmp_path / "nothing.h5")


def test_damaged_weights(untrained, tmp_path):
    path = tmp_path / "cut.weights.h5"
    untrained.network.save_weights(path)
    path.write_bytes(path.read_bytes()[:100_000])
    with pytest.raises(ValueError, match=r"cut\.weights\.h5' is damaged.*delete"):
        Simple_Model(weights=path)


def test_weights_of_another_network(tmp_path):
    import keras

    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    other.save_weights(tmp_path / "other.weights.h5")
    with pytest.raises(ValueError, match="another network"):
        Simple_Model(weights=tmp_path / "other.weights.h5")


def test_failed_download(monkeypatch, tmp_path):
    import keras

    def offline(*args, **kwargs):
        raise Exception("URL fetch failure")

    monkeypatch.setattr(keras.utils, "get_file", offline)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    with pytest.raises(OSError, match=r"https://.*_no_top\.h5 .*URL fetch failure") as caught:
        Simple_Model()
    place = tmp_path / "models" / "mobilenet_1_0_224_tf_no_top.h5"
    assert str(place) in str(caught.value)
    assert "--weights FILE" in str(caught.value)
    assert "--weights none" in str(caught.value)
    # And what is put there is read, even if Keras would look elsewhere.
    place.parent.mkdir()
    place.write_text("no weights")
    with pytest.raises(ValueError, match="damaged"):
        Simple_Model()


def test_pictures_of_another_type(untrained):
    for picture in (None, np.zeros((4, 4, 3)), Image.new("RGB", (4, 4)), b"bytes"):
        with pytest.raises(TypeError, match="a path or a binary file object"):
            untrained.get_feature_map(picture)


@pytest.mark.parametrize("module", ["Model", "Visualize"])
def test_import_loads_no_tensorflow(module):
    code = f"import sys, {module}; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
