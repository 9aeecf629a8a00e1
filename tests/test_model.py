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
SIZES = [(112, 32), (112, 64), (56, 64), (56, 128), (56, 128), (56, 128), (28, 128), (28, 256)]
SIZES += [(28, 256), (28, 256), (14, 256), *[(14, 512)] * 11, (7, 512), *[(7, 1024)] * 3]
LAYERS = [
    (f"conv_{kind}_{number // 2 + 1}", *size)
    for number, (kind, size) in enumerate(zip(["dw", "pw"] * 13, SIZES, strict=True))
]


@pytest.fixture(scope="module")
def feature_maps(pretrained):
    return pretrained.get_feature_map(SAMPLE)


@pytest.fixture(scope="module")
def untrained():
    return Simple_Model(weights=None)


@pytest.fixture(scope="module")
def weights_file(tmp_path_factory):
    import keras

    path = tmp_path_factory.mktemp("weights") / "mine.weights.h5"
    network = keras.applications.MobileNet((224, 224, 3), include_top=False, weights=None)
    network.save_weights(path)
    return path, network


def test_layers_and_shapes(pretrained, feature_maps):
    assert pretrained.output_layers == [name for name, _, _ in LAYERS]
    assert pretrained.input_size == (224, 224)
    assert [fmap.shape for fmap in feature_maps] == [(1, s, s, c) for _, s, c in LAYERS]
    assert {fmap.dtype for fmap in feature_maps} == {np.dtype(np.float32)}
    assert sum(fmap.shape[-1] for fmap in feature_maps) == 10_912


@pytest.fixture(scope="module")
def whole_mobilenet(pretrained):
    """The output of every layer of Keras's own network, one layer after another."""
    import keras

    network = keras.applications.MobileNet(
        include_top=False, input_shape=(224, 224, 3), weights=None
    )
    network.set_weights(Simple_Model(after="relu").model.get_weights())
    picture = Image.open(SAMPLE).resize((224, 224), Image.Resampling.BICUBIC)
    x = np.asarray(picture, np.float32)[np.newaxis] / 127.5 - 1
    outputs = {}
    for layer in network.layers[1:]:
        x = layer(x)
        outputs[layer.name] = keras.ops.convert_to_numpy(x)
    return outputs


@pytest.mark.parametrize(("after", "ending"), [("conv", ""), ("bn", "_bn"), ("relu", "_relu")])
def test_equal_to_the_whole_mobilenet_layer_by_layer(pretrained, whole_mobilenet, after, ending):
    model = Simple_Model(after=after)
    first = model.get_feature_map(SAMPLE)
    for (name, _, _), fmap in zip(LAYERS, first, strict=True):
        expected = whole_mobilenet[name + ending]
        np.testing.assert_allclose(fmap, expected, rtol=1e-4, atol=1e-4, err_msg=name)
    if after == "relu":
        assert min(fmap.min() for fmap in first) == 0
        assert max(fmap.max() for fmap in first) == 6
    for _ in range(4):  # from the fourth call on, the network is compiled
        later = model.get_feature_map(SAMPLE)
    for (name, _, _), fmap, other in zip(LAYERS, first, later, strict=True):
        near = 1e-4 * np.abs(fmap).max()
        np.testing.assert_allclose(other, fmap, rtol=0, atol=near, err_msg=name)
        assert other.dtype == np.float32


def test_every_kind_of_picture_gives_the_same(untrained):
    data = SAMPLE.read_bytes()
    stream = io.BytesIO(data)
    stream.seek(7)
    image = Image.open(SAMPLE)
    image.load()
    before = image.copy()
    expected = untrained.get_feature_map(str(SAMPLE))
    with open(SAMPLE, "rb") as file:
        for source in (SAMPLE, file, file, stream, image):
            for fmap, other in zip(untrained.get_feature_map(source), expected, strict=True):
                np.testing.assert_allclose(fmap, other, rtol=0, atol=1e-4 * np.abs(other).max())
        assert not file.closed
    assert stream.getvalue() == data
    assert (image.mode, image.size, image.tobytes()) == ("RGB", before.size, before.tobytes())


def test_unknown_stage():
    with pytest.raises(ValueError, match="'softmax': choose from conv, bn, relu"):
        Simple_Model(weights=None, after="softmax")


def test_weights_from_a_file(weights_file):
    path, network = weights_file
    for weights in (path, str(path)):
        model = Simple_Model(weights=weights, after="relu").model
        for array, other in zip(model.get_weights(), network.get_weights(), strict=True):
            np.testing.assert_array_equal(array, other)


def test_channels_first_in_the_keras_configuration():
    import keras

    keras.config.set_image_data_format("channels_first")
    try:
        maps = Simple_Model(weights=None).get_feature_map(SAMPLE)
    finally:
        keras.config.set_image_data_format("channels_last")
    assert maps[0].shape == (1, 112, 112, 32)


def test_weights_that_do_not_fit(weights_file, tmp_path):
    import keras

    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    other.save_weights(tmp_path / "other.weights.h5")
    (tmp_path / "cut.weights.h5").write_bytes(weights_file[0].read_bytes()[:100_000])
    for name in ("other", "cut"):
        with pytest.raises(
            ValueError, match=rf"{name}\.weights\.h5'.*delete it when damaged"
        ) as caught:
            Simple_Model(weights=tmp_path / f"{name}.weights.h5")
        assert "\n" not in str(caught.value)
    with pytest.raises(OSError, match=r"nothing\.h5"):
        Simple_Model(weights=tmp_path / "nothing.h5")


def test_failed_download(monkeypatch, tmp_path):
    import keras

    def offline(*args, **kwargs):
        raise Exception("URL fetch failure")

    monkeypatch.setattr(keras.utils, "get_file", offline)
    monkeypatch.setenv("KERAS_HOME", str(tmp_path))
    with pytest.raises(OSError, match="URL fetch failure") as caught:
        Simple_Model()
    place = tmp_path / "models" / "mobilenet_1_0_224_tf_no_top.h5"
    url = "https://storage.googleapis.com/tensorflow/keras-applications/mobilenet/"
    for part in (str(place), url + place.name, "--weights FILE", "--weights none"):
        assert part in str(caught.value)


@pytest.mark.parametrize("module", ["Model", "Visualize"])
def test_import_loads_no_tensorflow(module):
    code = f"import sys, {module}; sys.exit('tensorflow' in sys.modules or 'keras' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
