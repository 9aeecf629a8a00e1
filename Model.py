"""Compute the feature maps of MobileNet's depthwise and pointwise convolutions.

One Keras model has all 26 layers as outputs, so that one forward pass gives all the maps.
"""

from __future__ import annotations

import contextlib
import os
import textwrap
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import ExifTags, Image

if TYPE_CHECKING:
    import keras

LAYERS = [f"conv_{kind}_{block}" for block in range(1, 14) for kind in ("dw", "pw")]
INPUT_SIZE = (224, 224)
WEIGHTS = "mobilenet_1_0_224_tf_no_top.h5"
WEIGHTS_URL = f"https://storage.googleapis.com/tensorflow/keras-applications/mobilenet/{WEIGHTS}"

# Where in a layer its values can be taken, and what to call them.
VALUES = {"conv": "convolution output", "bn": "batch-normalised", "relu": "activation after ReLU6"}

# Compiling pays off after about five pictures. A short job does better without it; a long one loses
# little by starting late. Three is a guess at where a short job ends.
CALLS_BEFORE_COMPILING = 3

# How a camera's picture must be turned, by the orientation in its EXIF block. (Pillow's own
# exif_transpose also rewrites the block, which fails where one of its numbers is malformed.)
Turn = Image.Transpose
TURNS = {
    2: Turn.FLIP_LEFT_RIGHT,
    3: Turn.ROTATE_180,
    4: Turn.FLIP_TOP_BOTTOM,
    5: Turn.TRANSPOSE,
    6: Turn.ROTATE_270,
    7: Turn.TRANSVERSE,
    8: Turn.ROTATE_90,
}

Picture = str | os.PathLike | BinaryIO | Image.Image


class Simple_Model:
    """MobileNet v1 (1.0, 224×224, https://arxiv.org/abs/1704.04861) with 26 layers as outputs."""

    def __init__(self, weights: str | os.PathLike | None = "imagenet", after: str = "conv") -> None:
        """Load Keras and the network.

        `weights` is "imagenet" (Keras downloads them once), None (an untrained network) or a file
        of weights for the network without its head. The feature maps are taken `after` each
        layer's convolution ("conv"), its batch normalisation ("bn") or its ReLU6 ("relu"). The
        attribute `values` says in words what they are.

        Raises OSError if the weights cannot be found or downloaded, and ValueError if a file of
        your own cannot be loaded into this network or `after` is unknown.
        """
        if after not in VALUES:
            raise ValueError(f"after={after!r}: choose {', '.join(VALUES)}")
        self.weights = weights
        self.after = after
        self.values = VALUES[after]
        if weights is None:
            self.values += ", untrained weights"
        elif weights != "imagenet":
            self.values += f", weights of {os.path.basename(weights)}"
        self.output_layers = list(LAYERS)
        self.model = self.build_model()
        self._calls = 0

    def build_model(self) -> keras.Model:
        """Build one `keras.Model` that gives all 26 outputs in a single forward pass."""
        import keras  # here, because it takes seconds, and importing this module should not

        with default_settings(keras.config):
            # Without its dtype, an Input would follow yet another setting, floatx.
            picture = keras.Input((*INPUT_SIZE, 3), dtype="float32")
            network = keras.applications.MobileNet(
                input_tensor=picture, include_top=False, weights=None
            )
            if self.weights is not None:
                load_weights(network, self.weights)
            suffix = "" if self.after == "conv" else f"_{self.after}"  # as in conv_dw_1_relu
            outputs = [network.get_layer(name + suffix).output for name in self.output_layers]
            return keras.Model(picture, outputs)

    def get_feature_map(self, img_path: Picture) -> list[np.ndarray]:
        """Compute the 26 feature maps of a picture: a path, an open binary file or a PIL image.

        Returns float32 arrays of shape (1, H, W, C) in the order of `output_layers`, from
        (1, 112, 112, 32) to (1, 7, 7, 1024): from 0 to 6 after ReLU6, signed and unbounded
        before it. From the fourth call on, compiled code may give other last digits. Raises
        OSError or ValueError if the picture cannot be read.
        """
        import keras

        pixels = np.asarray(read_picture(img_path), np.float32)  # (224, 224, 3), from 0 to 255
        batch = keras.applications.mobilenet.preprocess_input(pixels[np.newaxis])  # from -1 to 1
        self._calls += 1
        if self._calls <= CALLS_BEFORE_COMPILING:
            outputs = self.model(batch)
        else:
            outputs = self.model.predict_on_batch(batch)  # Keras compiles this
        return list(map(keras.ops.convert_to_numpy, outputs))


@contextlib.contextmanager
def default_settings(config: keras.config) -> Iterator[None]:
    """Let Keras build float32 layers for (H, W, C), then give back the caller's own settings."""
    data_format = config.image_data_format()
    policy = config.dtype_policy()
    config.set_image_data_format("channels_last")
    config.set_dtype_policy("float32")
    try:
        yield
    finally:
        config.set_image_data_format(data_format)
        config.set_dtype_policy(policy)


def load_weights(network: keras.Model, weights: str | os.PathLike) -> None:
    """Load a file, or the ImageNet weights, into the network; an error says what to do."""
    path = imagenet_weights() if weights == "imagenet" else weights
    if not os.path.isfile(path):
        raise FileNotFoundError(f"no such weights file: {str(path)!r}")
    try:
        network.load_weights(path)
    except Exception as error:  # h5py and Keras raise all kinds
        reason = textwrap.shorten(str(error), 70)
        failure = f"cannot load weights {str(path)!r} ({reason})"
        if weights == "imagenet":
            raise OSError(
                f"{failure}: wait if another program is downloading or using the file; "
                "delete it if it is damaged"
            ) from error
        raise ValueError(
            f"{failure}: expected those of MobileNet((224, 224, 3), include_top=False); "
            "if yours are in a larger model, call save_weights of only this part"
        ) from error


def imagenet_weights() -> str | Path:
    """Return the path of the ImageNet weights in Keras's cache; download them if needed."""
    import keras

    folder = Path(os.environ.get("KERAS_HOME", "~/.keras"), "models").expanduser()
    path = folder / WEIGHTS
    if path.is_file():  # Keras does not look into a cache that it cannot write to
        return path
    try:
        return keras.utils.get_file(origin=WEIGHTS_URL, cache_subdir="models")
    except Exception as error:  # get_file raises a bare Exception
        reason = str(error).rpartition(" -- ")[2]  # of "URL fetch failure on <url>: 404 -- reason"
        raise ConnectionError(
            f"cannot download the weights ({reason}): save {WEIGHTS_URL} in {str(folder)!r}"
        ) from error


def read_picture(img_path: Picture) -> Image.Image:
    """Read a picture's first frame as the network sees it: upright, over white, RGB, 224×224.

    A colour profile is ignored. Raises OSError or ValueError if the picture cannot be read.
    """
    with open_picture(img_path) as image:
        image.load()  # first, for Pillow turns a TIFF here, and drops its orientation
        turn = TURNS.get(image.getexif().get(ExifTags.Base.Orientation))
        upright = image if turn is None else image.transpose(turn)
        if upright.mode.startswith(("I", "F")):  # grey of more than 8 bits
            upright = to_8_bits(upright, header=image)  # a turned copy has no format or tags
        elif upright.has_transparency_data:
            white = Image.new("RGBA", upright.size, "white")
            upright = Image.alpha_composite(white, upright.convert("RGBA"))
        if upright.mode != "RGB":  # converting would copy a large picture for nothing
            upright = upright.convert("RGB")
        seen = upright.resize(INPUT_SIZE, Image.Resampling.BICUBIC)
        seen.info.clear()  # its colour profile was ignored, and must not come back when it is saved
        return seen


def to_8_bits(grey: Image.Image, header: Image.Image) -> Image.Image:
    """Turn deep grey into 0 for black to 255 for white; NaN is black.

    `header` has the format and the TIFF tags of the file, if any.
    """
    numbers = np.asarray(grey, np.float64)
    tags = getattr(header, "tag_v2", {})
    # Up to 16 bits, white is the largest number that they can hold.
    # (Pillow reads a PPM file of 16 bits in mode I, as if it had 32.)
    if header.mode.startswith("I;16") or (header.mode, header.format) == ("I", "PPM"):
        bits = tags.get(ExifTags.Base.BitsPerSample, [16])[0]
        ends = [0, 2**bits - 1]
    else:  # deeper grey has no such number, so its own range is used
        ends = [np.nanmin(numbers), np.nanmax(numbers)]
    shares = (numbers - ends[0]) / (np.ptp(ends) or 1)
    if tags.get(ExifTags.Base.PhotometricInterpretation) == 0:  # zero is white
        shares = 1 - shares
    return Image.fromarray(np.rint(255 * np.nan_to_num(shares)).astype(np.uint8))


@contextlib.contextmanager
def open_picture(img_path: Picture) -> Iterator[Image.Image]:
    """Open a picture for a `with` block. Opening reads the header only.

    Whatever fails, here or in the block, is raised as an OSError or a ValueError that says which
    picture cannot be read, why, and what to do. A file of more pixels than
    `PIL.Image.MAX_IMAGE_PIXELS` fails, too, though Pillow would only warn up to twice as many.
    """
    is_image = isinstance(img_path, Image.Image)
    is_path = isinstance(img_path, str | os.PathLike)
    if not (is_image or is_path or hasattr(img_path, "read")):
        raise ValueError(
            f"cannot read a picture from {type(img_path).__name__}: give a path, an open file, "
            "io.BytesIO(data) or PIL.Image.fromarray(array)"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            opened = contextlib.nullcontext(img_path) if is_image else Image.open(img_path)
            with opened as image:  # an Image of the caller's is not closed
                yield image
    except Exception as error:  # decoders raise SyntaxError, struct.error, KeyError, ...
        name = str(img_path if is_path else getattr(img_path, "name", img_path))
        from_system = getattr(error, "strerror", None)  # what the operating system says
        reason = from_system or str(error)
        if from_system:
            advice = "check the path or pattern"  # Visualize.py takes both
        else:
            advice = "save it again as a PNG or JPEG, scaled down if it is very large"
        kind = type(error) if isinstance(error, OSError) else ValueError
        raise kind(f"cannot read picture {name!r} ({reason}): {advice}") from error
