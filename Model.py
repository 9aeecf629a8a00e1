"""Compute the feature maps of MobileNet's depthwise and pointwise convolutions.

One Keras model outputs all chosen layers, so one forward pass gives all their maps.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import BinaryIO

import numpy as np
from PIL import Image, ImageOps
from PIL.ExifTags import Base as Tag

# conv_dw_1, conv_pw_1, conv_dw_2, ..., conv_pw_13
LAYERS = [f"conv_{kind}_{block}" for block in range(1, 14) for kind in ("dw", "pw")]

# The steps of a layer, and what comes out of each.
STEPS = {
    "conv": "convolution output",
    "bn": "batch-normalised",
    "relu": "activation after ReLU6",
}
SIZE = (224, 224)  # of the pictures that MobileNet is trained on


class Simple_Model:
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
        `layers`: names from LAYERS, and conv1, the ordinary convolution before them.

        The attribute `values` says in words what the maps are. Raises OSError if the weights cannot
        be loaded, ValueError if a layer is unknown.
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
        """Build one `keras.Model` that gives all outputs in a single forward pass."""
        import keras  # here, so that importing this module does not take seconds

        config = keras.config
        settings = [config.image_data_format(), config.floatx(), config.dtype_policy().name]
        if settings != ["channels_last", "float32", "float32"]:  # keras.json may change them
            raise ValueError(f"Keras must be set to channels_last and float32, not to {settings}")
        try:
            network = keras.applications.MobileNet(
                input_shape=(*SIZE, 3), include_top=False, weights=self.weights
            )
        except Exception as error:  # the download, h5py and Keras raise all kinds
            raise OSError(f"cannot load weights {str(self.weights)!r}: {error}") from error
        suffix = "" if self.after == "conv" else f"_{self.after}"  # Keras's name: conv_dw_1_relu
        outputs = {name: network.get_layer(name + suffix).output for name in self.output_layers}
        return keras.Model(network.input, outputs)

    def get_feature_map(
        self, img_path: str | os.PathLike | BinaryIO | Image.Image
    ) -> dict[str, np.ndarray]:
        """Compute the feature maps of a picture: a path, an open binary file or a PIL image.

        Returns a float32 array of shape (1, H, W, C) for each name in `output_layers`, in that
        order: conv_dw_1 is (1, 112, 112, 32), conv_pw_13 is (1, 7, 7, 1024). After ReLU6, values
        are from 0 to 6; before it, they have no bounds. Raises OSError if a picture is unreadable.
        """
        return self.compute(read_picture(img_path))

    def compute(self, picture: Image.Image) -> dict[str, np.ndarray]:
        """Compute the feature maps of a picture that `read_picture` has read."""
        import keras

        pixels = np.asarray(picture, "float32")[np.newaxis]  # (1, 224, 224, 3), from 0 to 255
        pixels = keras.applications.mobilenet.preprocess_input(pixels)  # from -1 to 1
        # Compiling, as predict_on_batch does, pays only after about five pictures.
        self.pictures_seen += 1
        run = self.model if self.pictures_seen <= 5 else self.model.predict_on_batch
        maps = run(pixels)
        # In our order: with some of Keras's backends, the maps come sorted by name.
        return {name: keras.ops.convert_to_numpy(maps[name]) for name in self.output_layers}


def read_picture(img_path: str | os.PathLike | BinaryIO | Image.Image) -> Image.Image:
    """Read a picture as the network sees it: RGB, upright, over white, 224×224 whatever its shape.

    In grey of more than 8 bits, the lowest value becomes black and the highest white. Colour
    profiles are ignored. Raises OSError if the picture cannot be read.
    """
    try:
        if isinstance(img_path, Image.Image):
            return prepare(img_path)
        with Image.open(img_path) as image:
            return prepare(image)
    except Exception as error:  # decoders raise SyntaxError, struct.error, KeyError, ...
        raise OSError(f"cannot read picture {str(img_path)!r:.150}: {error!s:.120}") from error


def prepare(image: Image.Image) -> Image.Image:
    """Give an opened picture the size, colours and orientation that `read_picture` promises."""
    if image.mode.startswith(("I", "F")):  # grey of more than 8 bits
        small = stretch(image.resize(SIZE))
    elif image.mode in ("L", "RGB"):
        small = image.resize(SIZE)
    else:  # RGBA, P, CMYK, ...: perhaps transparent
        small = resize_over_white(image)
    picture = Image.new("RGB", SIZE)  # without metadata
    picture.paste(small)
    # Only the orientation is copied: other EXIF data, if malformed, would make exif_transpose fail.
    orientation = image.getexif().get(Tag.Orientation, 1)  # 1: upright
    picture.getexif()[Tag.Orientation] = orientation
    return ImageOps.exif_transpose(picture)


def stretch(grey: Image.Image) -> Image.Image:
    """Make the lowest finite number 0 (black) and the highest 255 (white). NaN becomes black."""
    numbers = np.asarray(grey, float)
    finite = numbers[np.isfinite(numbers)]
    levels = np.interp(numbers, [finite.min(), finite.max()], [0, 255])  # 255 if all are equal
    return Image.fromarray(np.nan_to_num(levels).round().astype(np.uint8))


def resize_over_white(image: Image.Image) -> Image.Image:
    """Lay an image on white and resize it, one colour channel at a time, to save memory."""
    if image.mode != "RGBA":
        image = image.convert("RGBA")
    opacity = image.getchannel("A")
    colours = []
    for name in "RGB":
        colour = Image.new("L", image.size, "white")
        colour.paste(image.getchannel(name), mask=opacity)
        colours.append(colour.resize(SIZE))
    return Image.merge("RGB", colours)
