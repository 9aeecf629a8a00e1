"""Compute the feature maps of MobileNet's depthwise and pointwise convolutions.

One Keras model outputs all chosen layers, so one forward pass gives all their maps.
"""

from __future__ import annotations

import contextlib
import os
import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, BinaryIO, Union

import numpy as np
from PIL import Image, ImageOps
from PIL.ExifTags import Base as Tag

if TYPE_CHECKING:
    import keras

LAYERS = [f"conv_{kind}_{block}" for block in range(1, 14) for kind in ("dw", "pw")]

# Where in a layer its values can be taken, and what to call them.
VALUES = {"conv": "convolution output", "bn": "batch-normalised", "relu": "activation after ReLU6"}

WEIGHTS_FOLDER = "https://storage.googleapis.com/tensorflow/keras-applications/mobilenet"

Picture = Union[str, os.PathLike, BinaryIO, Image.Image]


class Simple_Model:
    """MobileNet v1 (1.0, 224×224, https://arxiv.org/abs/1704.04861) with many layers as outputs."""

    def __init__(
        self,
        weights: str | os.PathLike | None = "imagenet",
        after: str = "conv",
        layers: Sequence[str] = LAYERS,
    ) -> None:
        """Load Keras and the network.

        `weights` is "imagenet" (Keras downloads them once), None (an untrained network) or a file
        of weights for the network without its head. The feature maps of `layers` are taken `after`
        the convolution ("conv"), its batch normalisation ("bn") or its ReLU6 ("relu"). Then
        `values` says in words what the maps are, and `output_layers` names their layers.

        Raises ValueError if `after` or a layer is unknown, or a file of your own is missing or
        does not fit; OSError if the ImageNet weights cannot be downloaded or loaded.
        """
        if after not in VALUES:
            raise ValueError(f"after={after!r}: choose {', '.join(VALUES)}")
        unknown = sorted(set(layers) - set(LAYERS))
        if unknown:
            raise ValueError(f"unknown layers {unknown}: choose from conv_dw_1 to conv_pw_13")
        self.weights = weights
        self.after = after
        self.output_layers = list(layers)
        self.values = VALUES[after]
        if weights is None:
            self.values += ", untrained weights"
        elif weights != "imagenet":
            if not os.path.isfile(weights):  # checked now, because loading Keras takes seconds
                raise ValueError(f"no such weights file: {os.fspath(weights)!r}")
            self.values += f", weights of {os.path.basename(weights)}"
        self.model = self.build_model()
        self._calls = 0

    def build_model(self) -> keras.Model:
        """Build one `keras.Model` that gives all outputs in a single forward pass."""
        import keras  # here, so that importing this module does not take seconds

        with default_settings():
            # Otherwise, the setting floatx would choose the dtype.
            picture = keras.Input((224, 224, 3), dtype="float32")
            try:
                network = keras.applications.MobileNet(
                    (224, 224, 3), include_top=False, weights=self.weights, input_tensor=picture
                )
            except Exception as error:  # the download, h5py and Keras raise all kinds
                raise self._weights_error(error) from error
            suffix = "" if self.after == "conv" else f"_{self.after}"  # as in conv_dw_1_relu
            outputs = [network.get_layer(name + suffix).output for name in self.output_layers]
            return keras.Model(picture, outputs)

    def _weights_error(self, error: Exception) -> Exception:
        """Say in one line why the weights cannot be loaded, and what to do."""
        # A failed download says "URL fetch failure on <address>: <number> -- <reason>".
        reason = textwrap.shorten(str(error).rpartition(" -- ")[2], 70)
        failure = f"cannot load weights {str(self.weights)!r} ({reason})"
        if self.weights == "imagenet":
            return OSError(
                f"{failure}: download {WEIGHTS_FOLDER}/mobilenet_1_0_224_tf_no_top.h5 "
                "with a browser, and give that file as weights (--weights)"
            )
        return ValueError(
            f"{failure}: expected those of MobileNet((224, 224, 3), include_top=False)"
        )

    def get_feature_map(self, img_path: Picture) -> list[np.ndarray]:
        """Compute the feature maps of a picture: a path, an open binary file or a PIL image.

        Returns float32 arrays of shape (1, H, W, C) in the order of `output_layers`. Of all 26, the
        first is (1, 112, 112, 32) and the last (1, 7, 7, 1024). After ReLU6, values lie between 0
        and 6; before it, they have no bounds. Raises OSError if the picture cannot be read.
        """
        import keras

        pixels = np.asarray(read_picture(img_path), "float32")  # (224, 224, 3), from 0 to 255
        batch = keras.applications.mobilenet.preprocess_input(pixels[np.newaxis])  # from -1 to 1
        # Keras compiles predict_on_batch, which takes as long as it saves in five calls. So it is
        # used from the sixth call on. Compiled results may differ in the last digits.
        self._calls += 1
        compute = self.model if self._calls <= 5 else self.model.predict_on_batch
        outputs = keras.tree.flatten(compute(batch))  # a list, even for a single output
        return list(map(keras.ops.convert_to_numpy, outputs))


@contextlib.contextmanager
def default_settings() -> Iterator[None]:
    """Let Keras build float32 layers for (H, W, C), then give back the caller's own settings."""
    from keras import config

    data_format = config.image_data_format()
    policy = config.dtype_policy()
    config.set_image_data_format("channels_last")
    config.set_dtype_policy("float32")
    try:
        yield
    finally:
        config.set_image_data_format(data_format)
        config.set_dtype_policy(policy)


def read_picture(img_path: Picture) -> Image.Image:
    """Read a picture's first frame as the network sees it: upright, over white, RGB, 224×224.

    A PIL image gives its current frame, turned as its EXIF orientation says (which
    `PIL.ImageOps.exif_transpose` removes). Colour profiles are ignored, and so is a transparent
    colour in the `info` of an RGB or grey PIL image. Raises OSError if the picture cannot be read.
    """
    try:
        if isinstance(img_path, Image.Image):
            return prepare(img_path, is_file=False)
        with Image.open(img_path) as image:
            return prepare(image, is_file=True)
    except Exception as error:  # decoders raise SyntaxError, struct.error, KeyError, ...
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"cannot read picture {str(img_path)!r:.150}: {reason!s:.120}") from error


def prepare(image: Image.Image, is_file: bool) -> Image.Image:
    """Give an image the colours, the size and the orientation that `read_picture` promises."""
    colours = image
    if image.mode.startswith(("I", "F")):  # grey of more than 8 bits
        colours = to_8_bits(image)
    # An RGB or grey image made from a palette keeps its transparent colour, though opaque pixels
    # may have that colour, too. So in these modes, a transparent colour counts only in a file.
    elif image.has_transparency_data and (is_file or image.mode not in ("L", "RGB")):
        white = Image.new("RGBA", image.size, "white")
        colours = Image.alpha_composite(white, image.convert("RGBA"))
    if colours.mode not in ("L", "RGB"):  # these two need no copy in full size
        colours = colours.convert("RGB")
    seen = colours.resize((224, 224), Image.Resampling.BICUBIC).convert("RGB")
    # Keep only the orientation: exif_transpose rewrites all EXIF data, and fails if a camera left a
    # malformed number there.
    orientation = image.getexif().get(Tag.Orientation, 1)
    seen.info.clear()
    seen.getexif()[Tag.Orientation] = orientation
    return ImageOps.exif_transpose(seen)


def to_8_bits(grey: Image.Image) -> Image.Image:
    """Resize deep grey to 224×224, and turn it into 0 for black to 255 for white; NaN is black."""
    numbers = np.asarray(grey.resize((224, 224), Image.Resampling.BICUBIC), float)
    tags = getattr(grey, "tag_v2", {})  # of a TIFF
    # Grey of 9 to 16 bits has mode I;16, or I in a PPM file. Its white has all bits set.
    if grey.mode.startswith("I;16") or (grey.mode, grey.format) == ("I", "PPM"):
        bits = tags.get(Tag.BitsPerSample, [16])[0]
        ends = [0, 2**bits - 1]
    else:  # deeper grey has no fixed white, so use its own range; nextafter keeps it non-empty
        ends = [np.nanmin(numbers), np.nextafter(np.nanmax(numbers), np.inf)]
    levels = np.interp(numbers, ends, (0, 255))
    if tags.get(Tag.PhotometricInterpretation) == 0:  # zero is white
        levels = 255 - levels
    return Image.fromarray(np.rint(np.nan_to_num(levels)).astype(np.uint8))
