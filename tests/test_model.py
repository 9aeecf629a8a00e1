"""The feature maps are those of Keras's MobileNet, in order, for the picture as prepared."""

import re

import numpy as np
import pytest
from conftest import SAMPLE, SIZES
from PIL import Image

from Model import Simple_Model


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
    calls = [model.get_feature_map(SAMPLE) for _ in range(5)]  # compiled from the fourth on
    for maps in (calls[0], calls[-1]):
        assert [fmap.shape for fmap in maps] == [(1, side, side, c) for side, c in SIZES]
        for name, fmap in zip(names, maps, strict=True):
            expected = whole_mobilenet[name]
            near = 1e-4 * np.abs(expected).max()
            np.testing.assert_allclose(fmap, expected, rtol=0, atol=near, err_msg=name)
            assert fmap.dtype == np.float32
        if after == "relu":
            assert {fmap.min() for fmap in maps} == {0}
            assert max(fmap.max() for fmap in maps) == 6


def test_weights_from_a_file(tmp_path):
    import keras

    network = keras.applications.MobileNet((224, 224, 3), include_top=False, weights=None)
    network.save_weights(tmp_path / "mine.weights.h5")
    for path in (tmp_path / "mine.weights.h5", str(tmp_path / "mine.weights.h5")):
        weights = Simple_Model(path, "relu").model.get_weights()
        for array, other in zip(weights, network.get_weights(), strict=True):
            np.testing.assert_array_equal(array, other)
    cut = (tmp_path / "mine.weights.h5").read_bytes()[:100_000]
    (tmp_path / "cut.weights.h5").write_bytes(cut)
    other = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    other.save_weights(tmp_path / "other.weights.h5")
    for name, kind in (("cut", ValueError), ("other", ValueError), ("none", OSError)):
        with pytest.raises(kind, match=rf"{name}\.weights\.h5' \(.*delete it") as caught:
            Simple_Model(tmp_path / f"{name}.weights.h5")
        assert "\n" not in str(caught.value)
