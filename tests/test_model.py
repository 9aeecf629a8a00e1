"""The feature maps are those of Keras's MobileNet, in order, for the picture as prepared."""

import re

import numpy as np
import pytest
from conftest import SAMPLE, SIZES
from PIL import Image

from Model import LAYERS, Simple_Model, read_picture


@pytest.fixture(scope="module")
def whole_mobilenet(pretrained):
    """The output of every layer of Keras's own network, one layer after another."""
    import keras

    network = keras.applications.MobileNet((224, 224, 3), include_top=False, weights=None)
    network.set_weights(Simple_Model(after="relu").model.get_weights())
    picture = Image.open(SAMPLE).resize((224, 224), Image.Resampling.BICUBIC)
    x = np.asarray(picture, np.float32)[np.newaxis] / 127.5 - 1
    outputs = {}
    for layer in network.layers[1:]:
        x = layer(x)
        outputs[layer.name] = keras.ops.convert_to_numpy(x)
    return outputs


@pytest.mark.parametrize(("after", "ending"), [("conv", ""), ("bn", "_bn"), ("relu", "_relu")])
def test_equal_to_the_whole_mobilenet_layer_by_layer(whole_mobilenet, after, ending):
    model = Simple_Model(after=after)
    names = [name for name in whole_mobilenet if re.fullmatch(rf"conv_[dp]w_\d+{ending}", name)]
    assert names == [name + ending for name in model.output_layers]
    calls = [model.get_feature_map(SAMPLE) for _ in range(6)]  # the last one is compiled
    for maps in (calls[0], calls[-1]):
        assert list(maps) == LAYERS
        assert [fmap.shape for fmap in maps.values()] == [(1, side, side, c) for side, c in SIZES]
        for name, fmap in zip(names, maps.values()):
            expected = whole_mobilenet[name]
            near = 1e-4 * np.abs(expected).max()
            np.testing.assert_allclose(fmap, expected, rtol=0, atol=near, err_msg=name)
            assert fmap.dtype == np.float32
            fmap[:] = 0  # so it is writable


def test_layers_of_your_choice(whole_mobilenet):
    for layers in (["conv_pw_3", "conv_dw_1"], ("conv1",), LAYERS[::-1]):
        model = Simple_Model(layers=layers)
        assert model.output_layers == list(layers)
        for _ in range(6):  # the last one is compiled
            maps = model.get_feature_map(SAMPLE)
            assert list(maps) == list(layers)
        for layer, fmap in maps.items():
            near = 1e-4 * np.abs(whole_mobilenet[layer]).max()
            np.testing.assert_allclose(fmap, whole_mobilenet[layer], rtol=0, atol=near)
    after_relu = Simple_Model(after="relu", layers=["conv1"]).get_feature_map(SAMPLE)
    np.testing.assert_allclose(after_relu["conv1"], whole_mobilenet["conv1_relu"], atol=1e-4)
    with pytest.raises(ValueError, match="No such layer: conv_pw_14"):
        Simple_Model(layers=["conv_dw_1", "conv_pw_14"])


def test_a_picture_that_was_read_is_computed_as_it_is(pretrained):
    given = pretrained.get_feature_map(SAMPLE)
    for name, fmap in pretrained.compute(read_picture(SAMPLE)).items():
        np.testing.assert_allclose(fmap, given[name], rtol=0, atol=1e-4 * np.abs(fmap).max())


def test_activations_go_from_0_to_6(pretrained):
    maps = Simple_Model(after="relu").get_feature_map(SAMPLE)
    assert {fmap.min() for fmap in maps.values()} == {0}
    assert max(fmap.max() for fmap in maps.values()) == 6


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("dtype_policy", "mixed_float16"),
        ("floatx", "float16"),
        ("image_data_format", "channels_first"),
    ],
)
def test_settings_that_would_change_the_maps_are_refused_and_stay(setting, value):
    import keras

    before = getattr(keras.config, setting)()
    getattr(keras.config, f"set_{setting}")(value)
    try:
        with pytest.raises(ValueError, match=f"set to channels_last and float32, not to .*{value}"):
            Simple_Model(weights=None)
        told = getattr(keras.config, setting)()
        assert getattr(told, "name", told) == value
    finally:
        getattr(keras.config, f"set_{setting}")(before)


def test_values_say_what_the_numbers_are(tmp_path):
    import keras

    network = keras.applications.MobileNet((224, 224, 3), include_top=False, weights=None)
    network.save_weights(tmp_path / "mine.weights.h5")
    untrained = Simple_Model(weights=None)
    assert untrained.values == "convolution output, untrained weights"
    mine = Simple_Model(tmp_path / "mine.weights.h5", "relu")
    assert mine.values == "activation after ReLU6, weights of mine.weights.h5"
    with pytest.raises(KeyError, match="end"):
        Simple_Model(after="end")


def test_weights_from_a_file(tmp_path):
    import keras

    network = keras.applications.MobileNet((224, 224, 3), include_top=False, weights=None)
    network.save_weights(tmp_path / "mine.weights.h5")
    for path in (tmp_path / "mine.weights.h5", str(tmp_path / "mine.weights.h5")):
        weights = Simple_Model(path, "relu").model.get_weights()
        for array, other in zip(weights, network.get_weights()):
            np.testing.assert_array_equal(array, other)


def test_weights_that_do_not_fit(tmp_path):
    import keras

    whole = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    whole.save(tmp_path / "whole.h5")
    whole.save_weights(tmp_path / "other.weights.h5")
    (tmp_path / "text.h5").write_text("no weights")
    for name in ("whole.h5", "other.weights.h5", "text.h5", "missing.h5"):
        with pytest.raises(OSError, match="cannot load weights") as caught:
            Simple_Model(tmp_path / name)
        assert str(caught.value).startswith(f"cannot load weights {str(tmp_path / name)!r}: ")
