"""Compute the feature maps of MobileNet's depthwise and pointwise convolutions."""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageCms, ImageOps

LAYERS = [f"conv_{kind}_{block}" for block in range(1, 14) for kind in ("dw", "pw")]
ENDINGS = {"conv": "", "bn": "_bn", "relu": "_relu"}  # of Keras's names for a layer's stages
INPUT_SIZE = (224, 224)
WEIGHTS = "mobilenet_1_0_224_tf_no_top.h5"
URL = f"https://storage.googleapis.com/tensorflow/keras-applications/mobilenet/{WEIGHTS}"
Picture = str | os.PathLike[str] | BinaryIO | Image.Image


class Simple_Model:
    """MobileNet v1 (1.0, 224×224) with its 13 depthwise and 13 pointwise layers as outputs.

    Howard et al., "MobileNets", 2017, https://arxiv.org/abs/1704.04861, as built in
    https://keras.io/api/applications/mobilenet/, without the classification head.
    `output_layers` holds the names of the 26 layers, in network order.
    """

    def __init__(self, weights: str | os.PathLike | None = "imagenet", after: str = "conv") -> None:
        """Load TensorFlow and the network.

        `weights` is "imagenet" (Keras downloads them once), None (an untrained network) or a
        weights file without the head. The feature maps are taken `after` each layer's
        convolution ("conv"), its batch normalisation ("bn") or its ReLU6 ("relu").

        Raises OSError if the weights file does not exist or cannot be downloaded, and ValueError
        if it is damaged or belongs to another network, or if `after` is unknown.
        """
        if after not in ENDINGS:
            raise ValueError(f"unknown after={after!r}: choose from {', '.join(ENDINGS)}")
        self.output_layers, self.input_size = list(LAYERS), INPUT_SIZE
        self.weights, self.after = weights, after
        self.network = _load_mobilenet(weights)
        self.model = self.build_model()
        self._calls = 0

    def build_model(self) -> Any:
        """Build one `keras.Model` that gives all 26 outputs in a single forward pass."""
        import keras

        stages = [self.network.get_layer(name + ENDINGS[self.after]) for name in self.output_layers]
        return keras.Model(self.network.input, [stage.output for stage in stages])

    def get_feature_map(self, img_path: Picture) -> list[np.ndarray]:
        """Compute the 26 feature maps of a picture: a path, a binary file or a PIL image.

        Returns float32 arrays of shape (1, H, W, C) in the order of `output_layers`, from
        (1, 112, 112, 32) to (1, 7, 7, 1024). Their values are in [0, 6] after ReLU6, and signed
        and unbounded before. Raises OSError or ValueError if the picture cannot be read.
        """
        from keras.applications.mobilenet import preprocess_input

        pixels = np.asarray(read_picture(img_path), np.float32)[np.newaxis]  # (1, 224, 224, 3)
        self._calls += 1
        # predict_on_batch compiles the network first, which pays from about four pictures on.
        run = self.model if self._calls < 4 else self.model.predict_on_batch
        outputs = run(preprocess_input(pixels))  # pixels from [0, 255] to [-1, 1]
        return [np.asarray(output, np.float32) for output in outputs]


def _load_mobilenet(weights: str | os.PathLike | None) -> Any:
    import keras  # here, because it takes seconds, and importing this module should not

    keras.config.set_image_data_format("channels_last")  # a user's keras.json may say otherwise
    file = None if weights is None else os.fspath(weights)
    try:
        if weights == "imagenet":
            file = os.path.join(os.environ.get("KERAS_HOME", "~/.keras"), "models", WEIGHTS)
            file = os.path.expanduser(file)
            # Keras itself does not read a cache that it cannot write to, such as a shared one.
            if not os.path.isfile(file):
                file = keras.utils.get_file(WEIGHTS, URL, cache_subdir="models")
        elif file is not None:
            os.stat(file)
        return keras.applications.MobileNet((*INPUT_SIZE, 3), include_top=False, weights=file)
    except Exception as error:  # get_file raises a bare Exception, h5py and Keras raise all kinds
        kind = ValueError if file is None or os.path.isfile(file) else OSError
        raise kind(
            f"cannot load weights file {file!r} ({error}): if it is Keras's own and damaged, "
            f"delete it and Keras downloads it again; without a network, save {URL} there; "
            "or choose another file (--weights FILE) or the untrained network (--weights none)"
        ) from error


def read_picture(img_path: Picture) -> Image.Image:
    """Read a picture as the network sees it: upright, over white, RGB, squeezed to 224×224.

    Of an animation, this is the first frame. Raises OSError or ValueError, as `open_picture`.
    """
    with open_picture(img_path) as image:
        upright = ImageOps.exif_transpose(image)  # this reads the pixels
        if image.mode[0] in "IF":  # 16-bit grey keeps its format's range, deeper grey its own
            values = np.asarray(upright, np.float64)
            finite = values[np.isfinite(values)]
            sixteen_bit = image.mode.startswith("I;16") or image.format == "PPM"
            low, high = (0, 65535) if sixteen_bit else (finite.min(), finite.max())
            grey = np.interp(np.nan_to_num(values, nan=low), (low, high), (0, 255))
            upright = Image.fromarray(np.rint(grey).astype(np.uint8))
        elif image.mode == "LAB":
            lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
            upright = ImageCms.profileToProfile(upright, lab, srgb, outputMode="RGB")
        elif image.has_transparency_data:
            white = Image.new("RGBA", upright.size, "white")
            upright = Image.alpha_composite(white, upright.convert("RGBA"))
        return upright.convert("RGB").resize(INPUT_SIZE, Image.Resampling.BICUBIC)


@contextlib.contextmanager
def open_picture(img_path: Picture) -> Iterator[Image.Image]:
    """Open a picture, which reads its header; the block may read its pixels.

    A file object is read from its start and left open. Raises an OSError or a ValueError that
    names the picture and the reason, also for what goes wrong in the block. More pixels than
    `PIL.Image.MAX_IMAGE_PIXELS` are an error; Pillow only warns up to twice as many.
    """
    source = os.fspath(img_path) if isinstance(img_path, os.PathLike) else img_path
    name = repr(getattr(source, "name", source))
    if isinstance(source, str) and os.path.exists(source) and not os.path.isfile(source):
        raise OSError(f"cannot read picture {name}: it is a folder, a pipe or a device")
    if hasattr(source, "read"):
        if source.seekable():
            source.seek(0)
        source = io.BytesIO(source.read())  # some decoders close the file that they are given
    try:
        if isinstance(source, Image.Image):
            yield source
            return
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(source) as image:
                yield image
    except Exception as error:  # decoders raise SyntaxError, struct.error, KeyError, ...
        kind = type(error) if isinstance(error, OSError) else ValueError
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        if isinstance(error, Image.UnidentifiedImageError):
            reason = "not in a format that this Pillow knows"
        advice = "save it again as a PNG or JPEG, scaled down if it is very large"
        if isinstance(error, FileNotFoundError):
            advice = "check the path"
        raise kind(f"cannot read picture {name} ({reason}): {advice}") from error
