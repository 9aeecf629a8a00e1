"""Compute the feature maps of MobileNet's depthwise and pointwise convolutions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps
from PIL.ExifTags import Base

# conv_dw_1, conv_pw_1, conv_dw_2, ..., conv_pw_13
LAYERS = [f"conv_{kind}_{block}" for block in range(1, 14) for kind in ("dw", "pw")]

# The steps of a layer after which values can be taken, and what these are called.
STEPS = {
    "conv": "convolution output",
    "bn": "batch-normalised",
    "relu": "activation after ReLU6",
}
SIZE = (224, 224)  # width and height of the network's input


class Simple_Model:  # other scripts use it: keep the names of methods, arguments and attributes
    """MobileNet v1 (https://arxiv.org/abs/1704.04861) with many layers as outputs."""

    def __init__(
        self,
        weights: str | os.PathLike | None = "imagenet",
        after: str = "conv",
        layers: Sequence[str] = LAYERS,
    ) -> None:
        """Load Keras and the network.

        `weights`: "imagenet" (Keras downloads them once), None (untrained) or a file of weights
        for the network without its classifier (include_top=False).
        `after`: the step after which the values are taken, from STEPS.
        `layers`: names from LAYERS, or conv1, the ordinary convolution before them.

        The attribute `values` says in words what the maps' values are. Raises OSError if the
        weights cannot be loaded, KeyError for an unknown step, ValueError for an unknown layer.
        """
        self.weights = weights
        self.after = after
        self.output_layers = list(layers)
        self.values = STEPS[after]
        if weights is None:
            self.values += ", untrained weights"
        elif weights != "imagenet":
            self.values += f", weights of {os.path.basename(weights)}"
        self.model = self.build_model()
        self.pictures_seen = 0

    def build_model(self):
        """Build one `keras.Model` that gives the maps of all layers in a single forward pass."""
        import keras  # here, so that importing this module does not take seconds

        # Other settings, which people may have in ~/.keras/keras.json, would change the maps.
        config = keras.config
        settings = (config.image_data_format(), config.floatx(), config.dtype_policy().name)
        if settings != ("channels_last", "float32", "float32"):
            raise ValueError(f"Keras must be set to channels_last and float32, not to {settings}")
        try:
            network = keras.applications.MobileNet(
                input_shape=(*SIZE, 3), include_top=False, weights=self.weights
            )
        except Exception as error:  # the download, h5py and Keras raise all kinds
            raise OSError(f"cannot load weights {str(self.weights)!r}: {error}") from error
        suffix = "" if self.after == "conv" else f"_{self.after}"  # as in conv_dw_1_relu
        outputs = {name: network.get_layer(name + suffix).output for name in self.output_layers}
        return keras.Model(network.input, outputs)

    def get_feature_map(
        self, img_path: str | os.PathLike | BinaryIO | Image.Image
    ) -> dict[str, np.ndarray]:
        """Compute the feature maps of a picture: a path, an open binary file or a PIL image.

        Returns a float32 array of shape (1, H, W, C) for each name in `output_layers`, in that
        order: conv_dw_1 is (1, 112, 112, 32), conv_pw_13 is (1, 7, 7, 1024). Values after ReLU6
        are from 0 to 6; others have no bounds. Raises OSError if the picture cannot be read.
        """
        return self.compute(read_picture(img_path))

    def compute(self, picture: Image.Image) -> dict[str, np.ndarray]:
        """Compute the feature maps of a picture that `read_picture` has read before."""
        import keras

        pixels = np.asarray(picture, "float32")[np.newaxis]  # (1, 224, 224, 3), from 0 to 255
        pixels = keras.applications.mobilenet.preprocess_input(pixels)  # from -1 to 1
        # A plain call suits few pictures. predict_on_batch compiles first, then is twice as fast.
        self.pictures_seen += 1
        run = self.model if self.pictures_seen <= 5 else self.model.predict_on_batch
        maps = run(pixels)
        # Keras may give the maps in another order than output_layers.
        return {name: keras.ops.convert_to_numpy(maps[name]) for name in self.output_layers}


def read_picture(img_path: str | os.PathLike | BinaryIO | Image.Image) -> Image.Image:
    """Read a picture as the network sees it: RGB, upright, on white, squeezed to 224×224.

    In grey of more than 8 bits, the darkest of the 224×224 pixels becomes black, the brightest
    white. Colour profiles have no effect, nor has a colour that an RGB or grey picture declares
    transparent. Raises OSError if the picture cannot be read.
    """
    try:
        if isinstance(img_path, Image.Image):
            return prepare(img_path)
        with Image.open(img_path) as image:
            return prepare(image)
    except Exception as error:  # decoders raise SyntaxError, struct.error, KeyError, ...
        # The name may be long: somebody may pass a file's bytes instead of its path.
        message = f"cannot read picture {str(img_path)[:150]!r}: {str(error)[:120]}"
        raise OSError(message) from error


def prepare(image: Image.Image) -> Image.Image:
    """Make an opened picture RGB, upright, opaque and 224×224."""
    if image.mode.startswith(("I", "F")):  # I, I;16, F: grey of more than 8 bits
        small = to_8_bits(image.resize(SIZE))
    elif image.mode in ("L", "RGB"):
        small = image.resize(SIZE)
    else:  # RGBA, LA, P, CMYK, ...
        small = resize_over_white(image)
    picture = Image.new("RGB", SIZE)
    picture.paste(small)  # the pixels, as RGB, but no colour profile, which would be saved, too
    # exif_transpose needs the orientation only, and fails if other EXIF data are malformed.
    exif = picture.getexif()
    exif[Base.Orientation] = image.getexif().get(Base.Orientation, 1)
    return ImageOps.exif_transpose(picture)


def to_8_bits(grey: Image.Image) -> Image.Image:
    """Make the lowest number of a grey picture 0 (black), and the highest 255 (white)."""
    numbers = np.ma.masked_invalid(np.asarray(grey, float))  # masks NaN and infinity
    lowest = numbers.min()
    levels = 255 * (numbers - lowest) / (numbers.max() - lowest)  # masks 0 / 0
    return Image.fromarray(levels.filled(0).round().astype(np.uint8))


def resize_over_white(image: Image.Image) -> Image.Image:
    """Lay a picture on white and resize it, one colour after another to save memory."""
    if image.mode != "RGBA":
        image = image.convert("RGBA")
    colours = []
    for name in "RGB":
        colour = Image.new("L", image.size, "white")
        colour.paste(image.getchannel(name), mask=image.getchannel("A"))
        colours.append(colour.resize(SIZE))
    return Image.merge("RGB", colours)
