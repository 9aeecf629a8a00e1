"""Compute the feature maps of MobileNet's depthwise and pointwise convolutions."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, ImageOps

LAYERS = [f"conv_{kind}_{block}" for block in range(1, 14) for kind in ("dw", "pw")]
SUFFIXES = {"conv": "", "bn": "_bn", "relu": "_relu"}  # of Keras's layer names
WEIGHTS = "mobilenet_1_0_224_tf_no_top.h5"
URL = f"https://storage.googleapis.com/tensorflow/keras-applications/mobilenet/{WEIGHTS}"
Picture = str | os.PathLike[str] | BinaryIO | Image.Image


class Simple_Model:
    """MobileNet v1 (1.0, 224×224, https://arxiv.org/abs/1704.04861) with 26 layers as outputs."""

    def __init__(self, weights: str | os.PathLike | None = "imagenet", after: str = "conv") -> None:
        """Load TensorFlow and the network.

        `weights` is "imagenet" (Keras downloads them once), None (an untrained network) or a
        weights file without the head. The feature maps are taken `after` each layer's convolution
        ("conv"), its batch normalisation ("bn") or its ReLU6 ("relu"). Raises OSError if there is
        no weights file, and ValueError if it is damaged or another network's or `after` is unknown.
        """
        if after not in SUFFIXES:
            raise ValueError(f"unknown after={after!r}: choose from {', '.join(SUFFIXES)}")
        self.output_layers, self.input_size = list(LAYERS), (224, 224)
        self.weights, self.after, self._calls = weights, after, 0
        self.model = self.build_model()

    def build_model(self) -> Any:
        """Build one `keras.Model` that gives all 26 outputs in a single forward pass."""
        import keras  # here, because it takes seconds, and importing this module should not

        keras.config.set_image_data_format("channels_last")  # a user's keras.json may differ
        file = self.weights
        try:
            if file == "imagenet":
                # Keras itself does not read a cache that it cannot write to, such as a shared one.
                home = os.environ.get("KERAS_HOME", "~/.keras")
                file = os.path.expanduser(f"{home}/models/{WEIGHTS}")
                if not os.path.isfile(file):
                    file = keras.utils.get_file(WEIGHTS, URL, cache_subdir="models")
            network = keras.applications.MobileNet((224, 224, 3), include_top=False, weights=file)
        except Exception as error:  # get_file raises a bare Exception, h5py and Keras all kinds
            kind = ValueError if os.path.isfile(file or "") else OSError
            advice = "use --weights FILE or --weights none; or, if it is Keras's own file, delete "
            advice += f"it when damaged, and when you are offline, download {URL} to that path"
            reason = str(error).partition("\n")[0]  # Keras lists all the layers
            raise kind(f"cannot load weights file {str(file)!r} ({reason}): {advice}") from error
        stages = [network.get_layer(name + SUFFIXES[self.after]) for name in LAYERS]
        return keras.Model(network.input, [stage.output for stage in stages])

    def get_feature_map(self, img_path: Picture) -> list[np.ndarray]:
        """Compute the 26 feature maps of a picture: a path, a binary file or a PIL image.

        Returns float32 arrays of shape (1, H, W, C) in the order of `output_layers`, from
        (1, 112, 112, 32) to (1, 7, 7, 1024): from 0 to 6 after ReLU6, signed and unbounded
        before it. Raises OSError or ValueError if the picture cannot be read.
        """
        from keras.applications.mobilenet import preprocess_input

        pixels = np.asarray(read_picture(img_path), np.float32)[np.newaxis]  # (1, 224, 224, 3)
        self._calls += 1
        # Compiling the network pays off from about four pictures. It may change the last digits.
        run = self.model if self._calls < 4 else self.model.predict_on_batch
        outputs = run(preprocess_input(pixels))  # pixels from [0, 255] to [-1, 1]
        return [np.asarray(output, np.float32) for output in outputs]


def read_picture(img_path: Picture) -> Image.Image:
    """Read a picture's first frame as the network sees it: upright, over white, RGB, 224×224."""
    with open_picture(img_path) as image:
        upright = ImageOps.exif_transpose(image)  # this reads the pixels
        if image.mode[0] in "IF":  # 16-bit grey keeps its format's range, deeper grey its own
            values = np.asarray(upright, np.float64)
            finite = values[np.isfinite(values)]
            is_16_bit = image.mode.startswith("I;16") or (image.mode, image.format) == ("I", "PPM")
            low, high = (0, 65535) if is_16_bit else (finite.min(), finite.max())
            grey = np.interp(np.nan_to_num(values, nan=low), (low, high), (0, 255 * (high > low)))
            upright = Image.fromarray(np.rint(grey).astype(np.uint8))
        elif image.has_transparency_data:
            white = Image.new("RGBA", upright.size, "white")
            upright = Image.alpha_composite(white, upright.convert("RGBA"))
        return upright.convert("RGB").resize((224, 224), Image.Resampling.BICUBIC)


@contextlib.contextmanager
def open_picture(img_path: Picture) -> Iterator[Image.Image]:
    """Open a picture, which reads its header; the `with` block may read its pixels.

    Raises an OSError or a ValueError that names the picture and the reason, also for what fails
    in the `with` block, and for a file with more pixels than `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    source = os.fspath(img_path) if isinstance(img_path, os.PathLike) else img_path
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            ready = isinstance(source, Image.Image)
            with contextlib.nullcontext(source) if ready else Image.open(source) as image:
                yield image
    except Exception as error:  # decoders raise SyntaxError, struct.error, KeyError, ...
        kind = type(error) if isinstance(error, OSError) else ValueError
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        advice = "save it again as a PNG or JPEG, scaled down if it is very large"
        if isinstance(error, FileNotFoundError | IsADirectoryError):
            advice = "check the path"
        name = getattr(source, "name", source)
        raise kind(f"cannot read picture {name!r} ({reason}): {advice}") from error
