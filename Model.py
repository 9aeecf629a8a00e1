"""Compute the feature maps of MobileNet's depthwise and pointwise convolutions."""

from __future__ import annotations

import io
import math
import os
import textwrap
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from PIL import Image, ImageCms, ImageOps, TiffImagePlugin

if TYPE_CHECKING:
    import keras

# Where keras.applications.MobileNet(include_top=False) gets its ImageNet weights.
WEIGHTS_URL = (
    "https://storage.googleapis.com/tensorflow/keras-applications/mobilenet/"
    "mobilenet_1_0_224_tf_no_top.h5"
)


class Simple_Model:
    """MobileNet v1, cut off at its 13 depthwise and 13 pointwise convolutions.

    Howard et al., "MobileNets", 2017, https://arxiv.org/abs/1704.04861, as in
    https://keras.io/api/applications/mobilenet/, without the classification head.

    Attributes:
        output_layers: the 26 layer names, in network order.
        input_size: width and height of the network's input, in pixels.
        weights: as given to `__init__`.
        network: Keras's MobileNet.
        model: the Keras model from a preprocessed picture to the 26 outputs.
    """

    def __init__(self, weights: str | os.PathLike[str] | None = "imagenet") -> None:
        """Load the network; this is what loads TensorFlow.

        Args:
            weights: "imagenet" (downloaded by Keras once, then read from its cache), None
                (an untrained network), or the path of a weights file without the head.

        Raises:
            ImportError: Keras or TensorFlow cannot be loaded.
            OSError: the weights file is not there, or cannot be downloaded.
            ValueError: the weights file is damaged or belongs to another network.
        """
        self.output_layers = [
            f"conv_{kind}_{block}" for block in range(1, 14) for kind in ("dw", "pw")
        ]
        self.input_size = (224, 224)
        self.weights = weights
        self.network = _load_mobilenet((*self.input_size, 3), weights)
        self.model = self.build_model()

    def build_model(self) -> keras.Model:
        """Build the one model that gives all 26 outputs in a single forward pass.

        Each is the convolution's own output, before batch normalisation and activation.
        """
        import keras

        outputs = [self.network.get_layer(name).output for name in self.output_layers]
        return keras.Model(self.network.input, outputs)

    def get_feature_map(self, img_path: str | os.PathLike[str] | BinaryIO) -> list[np.ndarray]:
        """Compute the 26 feature maps of one picture.

        Args:
            img_path: a path, or a binary file object, read from its start and left open.

        Returns:
            26 float32 arrays of shape (1, H, W, C), in the order of `output_layers`: from
            (1, 112, 112, 32) to (1, 7, 7, 1024). The values are signed and unbounded.

        Raises:
            OSError, ValueError: the picture cannot be read (see `read_picture`).
        """
        from keras import ops
        from keras.applications.mobilenet import preprocess_input

        picture = read_picture(img_path).resize(self.input_size, Image.Resampling.BICUBIC)
        pixels = np.asarray(picture, dtype=np.float32)[np.newaxis]  # (1, 224, 224, 3)
        # Calling the model, unlike predict(), builds no input pipeline for the one picture.
        outputs = self.model(preprocess_input(pixels), training=False)
        # A user's keras.json may set another type to compute in.
        return [np.asarray(ops.convert_to_numpy(output), np.float32) for output in outputs]


def _load_mobilenet(
    input_shape: tuple[int, int, int], weights: str | os.PathLike[str] | None
) -> keras.Model:
    # Imported here, not above: it takes seconds, and `import Model` should be cheap.
    try:
        import keras
    except Exception as error:  # a broken installation fails in many ways, all in here
        raise ImportError(
            f"cannot load Keras and TensorFlow: {_reason(error)}; "
            "install them with 'pip install -r requirements.txt'"
        ) from error

    way_out = "take weights='imagenet' (--weights imagenet), which Keras fetches anew once deleted"
    if weights == "imagenet":
        name = WEIGHTS_URL.rpartition("/")[2]
        cache = os.path.expanduser(os.environ.get("KERAS_HOME", "~/.keras"))
        weights = os.path.join(cache, "models", name)
        way_out = "delete it and Keras fetches it anew"
        # MobileNet(weights="imagenet") would not say which file it reads, nor would it look into
        # a cache that cannot be written to, such as one that a class shares.
        if not os.path.isfile(weights):
            try:
                weights = keras.utils.get_file(name, WEIGHTS_URL, cache_subdir="models")
            except Exception as error:  # get_file raises a plain one; its context has the reason
                raise OSError(
                    f"cannot download {WEIGHTS_URL} ({_reason(error.__context__ or error)}): save "
                    f"that file as {weights!r}, or pass weights=FILE (--weights FILE), or "
                    "weights=None (--weights none) for the untrained network"
                ) from error
    if weights is not None:
        check_weights(weights)

    data_format = keras.config.image_data_format()
    keras.config.set_image_data_format("channels_last")  # a user's keras.json may differ
    try:
        network = keras.applications.MobileNet(
            include_top=False, input_shape=input_shape, weights=None
        )
    finally:
        keras.config.set_image_data_format(data_format)
    if weights is not None:
        try:
            network.load_weights(weights)
        except Exception as error:  # h5py and Keras raise OSError, KeyError, ValueError, ...
            raise ValueError(
                f"weights file {os.fspath(weights)!r} is damaged or of another network "
                f"({textwrap.shorten(_reason(error), 200, placeholder=' ...')}): {way_out}"
            ) from error
    return network


def check_weights(path: str | os.PathLike[str]) -> None:
    """Raise an OSError that says why, if a weights file cannot be opened."""
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise type(error)(
            f"cannot read weights file {os.fspath(path)!r} ({error.strerror}): name another file, "
            "imagenet or none"
        ) from error


def read_picture(img_path: str | os.PathLike[str] | BinaryIO) -> Image.Image:
    """Read a picture as a person sees it: upright, over white, in 8-bit RGB.

    Grey of more than 8 bits is brought to 8 by its format's range, or by the picture's own
    range where the format has none. Of an animation or several pages, the first is taken.

    Args:
        img_path: a path, or a binary file object, read from its start and left open.

    Raises:
        TypeError: neither of these.
        OSError: the file is not there, is a folder, is no picture, or ends too early.
        ValueError: it is damaged, has more pixels than Pillow's limit
            (`PIL.Image.MAX_IMAGE_PIXELS`), or is not supported by this Pillow.
    """
    if isinstance(img_path, (str, os.PathLike)):
        name, source = repr(os.fspath(img_path)), img_path
    elif not hasattr(img_path, "read"):
        raise TypeError(f"a picture is a path or a binary file object, not {type(img_path)}")
    else:  # a copy, since some of Pillow's decoders close the file that they are given
        name = repr(getattr(img_path, "name", img_path))
        if img_path.seekable():
            img_path.seek(0)
        source = io.BytesIO(img_path.read())

    try:
        with Image.open(source) as image:
            limit = Image.MAX_IMAGE_PIXELS or math.inf
            if image.width * image.height > limit:  # Pillow itself only warns, up to twice this
                raise Image.DecompressionBombError(f"{image.width}×{image.height}, over {limit:,}")
            return _as_seen(image)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"no picture {name}: check the path") from error
    except IsADirectoryError as error:
        raise IsADirectoryError(f"{name} is a folder: name the pictures in it") from error
    except Image.UnidentifiedImageError as error:
        raise OSError(
            f"{name} is not a picture that this Pillow can read: convert it to PNG or JPEG"
        ) from error
    except Image.DecompressionBombError as error:
        raise ValueError(f"{name} has too many pixels ({_reason(error)}): scale it down") from error
    except Exception as error:  # decoders raise SyntaxError, struct.error, KeyError, ...
        kind = type(error) if isinstance(error, OSError) else ValueError
        reason = getattr(error, "strerror", None) or (
            f"truncated, damaged or not supported by this Pillow ({_reason(error)})"
        )
        raise kind(f"cannot read picture {name}: {reason}") from error


def _as_seen(image: Image.Image) -> Image.Image:
    upright = ImageOps.exif_transpose(image)  # this reads the pixels; open() read the header
    if image.mode[0] in "IF":
        return _eight_bit_grey(upright, image).convert("RGB")
    if image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(upright, lab, srgb, outputMode="RGB")
    if image.has_transparency_data:
        white = Image.new("RGBA", upright.size, "white")
        upright = Image.alpha_composite(white, upright.convert("RGBA"))
    return upright.convert("RGB")


def _eight_bit_grey(upright: Image.Image, image: Image.Image) -> Image.Image:
    """Scale the deep grey pixels of `upright`, whose format `image` tells."""
    pixels = np.asarray(upright)
    tiff = getattr(image, "tag_v2", {})
    if image.mode.startswith("I;16"):
        low, high = 0, 2 ** tiff.get(TiffImagePlugin.BITSPERSAMPLE, (16,))[0] - 1
    elif image.mode == "I" and image.format == "PPM":
        low, high = 0, 65535  # to which Pillow scales any deep PGM
    else:  # a format without a range that pictures keep to
        if image.mode == "I" and tiff and tiff.get(TiffImagePlugin.SAMPLEFORMAT, (1,))[0] == 1:
            pixels = pixels.view(np.uint32)  # Pillow has no unsigned mode
        finite = pixels[np.isfinite(pixels)]
        low, high = float(finite.min()), float(finite.max())
    grey = (pixels.astype(np.float64) - low) * (255 / ((high - low) or 1))
    grey = np.rint(np.clip(np.nan_to_num(grey, nan=0), 0, 255)).astype(np.uint8)
    if tiff.get(TiffImagePlugin.PHOTOMETRIC_INTERPRETATION) == 0:  # white is zero
        grey = 255 - grey
    if isinstance(transparent := image.info.get("transparency"), int):
        grey[pixels == transparent] = 255
    return Image.fromarray(grey)


def _reason(error: BaseException) -> str:
    """Say in one line what went wrong."""
    return " ".join(str(error).split()) or type(error).__name__
