"""The table of backbones, their weights, and the pixels that they expect."""

from __future__ import annotations

import hashlib
import importlib
import os
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cxr_spark.errors import UserError, one_of


@dataclass(frozen=True)
class Backbone:
    """One convolutional network of keras.applications, without its top.

    Attributes:
        name: the name of its function in keras.applications.
        module: the module of keras.applications that holds its ``preprocess_input``.
        keras_file: name of the ImageNet weights, without the top, in Keras' cache.
        min_size: smallest height and width in pixels that the network accepts.
        expects_raw: whether its weights expect raw pixels in [0, 255], rescaled inside the network.
        core_seconds: what an image of 224 x 224 took one core of a Xeon with AVX-512, about; work
            is cut by it.
        graph_mb: what its graph, loaded, takes of a worker's memory in MiB (see ``memory``).
        image_mb: what each 224 x 224 image of a batch takes while it is computed, likewise.
    """

    name: str
    module: str
    keras_file: str
    min_size: int
    expects_raw: bool
    core_seconds: float
    graph_mb: int
    image_mb: float


_NO_TOP = "weights_tf_dim_ordering_tf_kernels_notop.h5"

# Names, files and sizes as in keras.applications 3.12 to 3.15.
BACKBONES = {
    backbone.name: backbone
    for backbone in (
        Backbone("ResNet50", "resnet", f"resnet50_{_NO_TOP}", 32, False, 0.056, 1560, 11),
        Backbone(
            "MobileNetV3Small",
            "mobilenet_v3",
            "weights_mobilenet_v3_small_224_1.0_float_no_top_v2.h5",
            32,
            True,
            0.0031,
            75,
            2,
        ),
        Backbone(
            "EfficientNetV2S",
            "efficientnet_v2",
            "efficientnetv2-s_notop.h5",
            32,
            True,
            0.049,
            1345,
            7,
        ),
        Backbone(
            "InceptionV3", "inception_v3", f"inception_v3_{_NO_TOP}", 75, False, 0.037, 1440, 7
        ),
        Backbone("Xception", "xception", f"xception_{_NO_TOP}", 71, False, 0.069, 1455, 22),
        Backbone("DenseNet121", "densenet", f"densenet121_{_NO_TOP}", 32, False, 0.050, 475, 9),
    )
}

RANDOM_SEED = 0

# What layers compute in, and Keras' name for it: weights and what is stored stay float32.
PRECISIONS = {"float32": "float32", "float16": "mixed_float16", "bfloat16": "mixed_bfloat16"}


def check_image_size(name: str, image_size: tuple[int, int]) -> None:
    """Raise UserError where ``image_size``, (height, width), is smaller than the backbone takes."""
    smallest = BACKBONES[name].min_size
    if min(image_size) < smallest:
        raise UserError(
            f"Expected image_size of at least {smallest} for {name}. "
            f"Received: {image_size[0]}x{image_size[1]}"
        )


def load_backbone(name: str, image_size: tuple[int, int], weights: str) -> Any:
    """Build a backbone with its weights: float32 (n_images, height, width, 3) to a feature map.

    Args:
        name: a key of ``BACKBONES``.
        image_size: (height, width) in pixels.
        weights: 'imagenet' (Keras' download or cache), 'random' (the initialisation of seed 0), a
            folder that holds ``<name>.weights.h5`` or the file of Keras' cache, or such a file
            itself.

    Returns:
        A frozen ``keras.Model``.

    Raises:
        UserError: the name is unknown, or the weights are missing, cannot be had or fit another
            backbone.
    """
    if name not in BACKBONES:
        raise one_of("backbone", name, BACKBONES)
    check_image_size(name, image_size)
    file = None if weights in ("imagenet", "random") else find_weights(name, weights)
    import keras

    keras.utils.set_random_seed(RANDOM_SEED)
    try:
        model = build_backbone(
            name, image_size, weights="imagenet" if weights == "imagenet" else None
        )
    except Exception as error:
        if weights != "imagenet":
            raise
        raise UserError(
            f"Expected to download the ImageNet weights of {name}. Received: {error}. "
            "Without a network give --weights DIR, a folder with the weights, or --weights random."
        ) from error
    if file is not None:
        _load_weights(model, name, file)
    model.trainable = False
    return model


def build_backbone(
    name: str,
    image_size: tuple[int, int],
    channels: int = 3,
    precision: str = "float32",
    weights: str | None = None,
) -> Any:
    """Build a network of keras.applications without its top, in a precision of ``PRECISIONS``."""
    import keras

    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(PRECISIONS[precision])
    try:
        return getattr(keras.applications, name)(
            weights=weights, include_top=False, input_shape=(*image_size, channels)
        )
    finally:
        keras.config.set_dtype_policy(policy)


def find_weights(name: str, weights: str) -> Path:
    """Return the weights file of a backbone in a folder, by our name or Keras', or the file itself.

    Raises:
        UserError: neither of the two files is there.
    """
    place = Path(weights)
    if place.is_file():
        return place
    names = (f"{name}.weights.h5", BACKBONES[name].keras_file)
    for candidate in names:
        if (place / candidate).is_file():
            return place / candidate
    known = "a folder" if place.is_dir() else "imagenet, random or a folder that exists"
    raise UserError(
        f"Expected --weights to be {known} that holds {' or '.join(names)}. Received: {weights}"
    )


def weights_file(name: str, weights: str) -> Path | None:
    """Return the file that weights come from: for 'imagenet' Keras' download, None before it.

    Raises:
        UserError: as for ``find_weights``.
    """
    if weights != "imagenet":
        return find_weights(name, weights)
    file = keras_home() / "models" / BACKBONES[name].keras_file
    return file if file.is_file() else None


def keras_home() -> Path:
    """Return the folder in which Keras keeps its downloads."""
    return Path(os.environ.get("KERAS_HOME") or os.path.expanduser("~/.keras"))


def _load_weights(model: Any, name: str, file: Path) -> None:
    try:
        with warnings.catch_warnings():
            # Keras warns of layers that a file does not hold, and leaves them as they were.
            warnings.filterwarnings("error", message=".*freshly-initialized")
            model.load_weights(str(file))
    except Exception as error:  # Keras and h5py raise many kinds
        text = "it lacks layers of this network" if isinstance(error, UserWarning) else str(error)
        reason = (text.strip() or type(error).__name__).splitlines()[0][:200]
        raise UserError(
            f"Expected the weights of {name}. Received: {file}, which does not fit: {reason}"
        ) from error


def weights_digest(model: Any) -> str:
    """Return the SHA-256 of weights as loaded: every array's shape and float32 bytes, in order."""
    digest = hashlib.sha256()
    for variable in model.weights:
        array = np.ascontiguousarray(variable, dtype="<f4")
        digest.update(repr(array.shape).encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def preprocess(name: str, preprocessing: str, pixels: Any) -> Any:
    """Return RGB pixels in [0, 255] as ``preprocessing`` leaves them.

    'none' leaves them as they are; 'keras' is the backbone's own preprocess_input.
    """
    if preprocessing == "none":
        return pixels
    module = importlib.import_module(f"keras.applications.{BACKBONES[name].module}")
    return module.preprocess_input(pixels)
