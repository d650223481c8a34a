"""A backbone as one function from grey pixels to features, on whichever backend Keras runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_spark.backbones import build_backbone, preprocess
from cxr_spark.engine.device import CPU, Device

# From uint8 or float32 of shape (n_images, height, width, 1) in [0, 255] to the arrays that
# ``feature_function`` names.
Forward = Callable[[npt.NDArray[Any]], tuple[npt.NDArray[Any], ...]]

# Above this relative L2 distance from float32, features of a lower precision are not used.
MAX_PRECISION_LOSS = 1e-2


def feature_function(
    model: Any, name: str, preprocessing: str, *, feature_maps: bool, precision: str = "float32"
) -> tuple[Any, Callable[[Any], tuple[Any, ...]]]:
    """Return a grey network and the function on tensors that makes features with it.

    Where the preprocessing treats the three channels alike, the network takes one channel: the
    first convolution's kernel is summed over its input channels, which is the same to rounding
    (relative L2 below 1e-6) and 3 to 7 % faster on processors. Elsewhere grey is repeated.

    Args:
        model: what ``load_backbone`` returned.
        name: the backbone.
        preprocessing: 'none' or 'keras'.
        feature_maps: whether to return maps as well.
        precision: 'float32', or 'float16' or 'bfloat16' for mixed precision: float32 weights and
            outputs, layers computed in the other.

    Returns:
        The network, a ``keras.Model``, and a function from float32 of shape
        (n_images, height, width, 1) in [0, 255] to (pooled float32 of shape (n_images, channels),),
        or to (pooled, feature map float16 of shape (n_images, map_height, map_width, channels) that
        is divided by its scale, scale float32 of shape (n_images,)).
    """
    from keras import ops

    channels = 1 if _treats_channels_alike(name, preprocessing) else 3
    network = model
    if channels == 1 or precision != "float32":
        network = build_backbone(name, model.input_shape[1:3], channels, precision)
        _copy_weights(model, network)

    def features(grey: Any) -> tuple[Any, ...]:
        pixels = grey if channels == 1 else ops.repeat(grey, 3, axis=-1)
        feature_map = network(preprocess(name, preprocessing, pixels), training=False)
        feature_map = ops.cast(feature_map, "float32")
        pooled = ops.mean(feature_map, axis=(1, 2))
        if not feature_maps:
            return (pooled,)
        scale = ops.max(ops.abs(feature_map), axis=(1, 2, 3))
        divisor = ops.where(scale > 0, scale, ops.ones_like(scale))
        half = ops.cast(feature_map / divisor[:, None, None, None], "float16")
        return pooled, half, scale

    return network, features


def _treats_channels_alike(name: str, preprocessing: str) -> bool:
    ramp = np.linspace(0, 255, 8, dtype=np.float32).reshape(1, 2, 4, 1)
    prepared = preprocess(name, preprocessing, np.repeat(ramp, 3, axis=-1))
    return bool(np.ptp(prepared, axis=-1).max() == 0)


def _copy_weights(model: Any, network: Any) -> None:
    """Copy weights in their order; a kernel over three equal channels becomes its sum over them."""
    for source, target in zip(model.weights, network.weights, strict=True):
        value = np.asarray(source)
        if tuple(source.shape) != tuple(target.shape):
            value = value.sum(axis=2, keepdims=True)
        target.assign(value)


def compile_forward(
    model: Any,
    name: str,
    preprocessing: str,
    *,
    feature_maps: bool,
    precision: str = "float32",
    device: Device = CPU,
    threads: int = 0,
) -> Forward:
    """Return ``feature_function`` compiled for Keras' backend; PyTorch runs it as it is.

    TensorFlow runs it on ``device`` with ``threads``, as ``load_graph`` does; JAX and PyTorch
    choose the device themselves. Float32 is that of processors, with no TensorFloat-32.

    The result takes uint8 or float32 pixels of shape (n_images, height, width, 1) and returns
    NumPy arrays. Each new number of images is compiled anew: keep to one.
    """
    import keras

    backend = keras.backend.backend()
    network, features = feature_function(
        model, name, preprocessing, feature_maps=feature_maps, precision=precision
    )
    if backend == "tensorflow":
        from cxr_spark.engine.frozen import freeze, load_graph

        return load_graph(freeze(features, model.input_shape[1:3]), device, threads=threads)
    if backend == "jax":
        return _compile_jax(network, features, precision)
    if backend == "torch":
        return _compile_torch(features)
    raise RuntimeError(f"expected Keras' backend tensorflow, jax or torch, found {backend}")


def _compile_jax(
    network: Any, features: Callable[[Any], tuple[Any, ...]], precision: str
) -> Forward:
    import jax
    import keras

    variables = network.variables

    def stateless(values: list[Any], grey: Any) -> tuple[Any, ...]:
        with (
            jax.default_matmul_precision("highest" if precision == "float32" else "default"),
            keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))),
        ):
            return features(grey.astype("float32"))

    compiled = jax.jit(stateless)
    values = [variable.value for variable in variables]

    def forward(grey: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], ...]:
        return tuple(np.asarray(output) for output in compiled(values, grey))

    return forward


def _compile_torch(features: Callable[[Any], tuple[Any, ...]]) -> Forward:
    import keras
    import torch

    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    device = keras.src.backend.torch.core.get_device()

    def forward(grey: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], ...]:
        with torch.inference_mode():
            outputs = features(torch.from_numpy(grey).to(device).float())
        return tuple(output.cpu().numpy() for output in outputs)

    return forward


def precision_loss(
    exact: tuple[npt.NDArray[Any], ...], lower: tuple[npt.NDArray[Any], ...]
) -> float:
    """Return the relative L2 distance of a lower precision's features from those of float32.

    Args:
        exact: what a ``Forward`` in float32 returned for some images.
        lower: what another one returned for the same.

    Returns:
        The larger one of the pooled features' and, where there are any, the maps'; NaN where one of
        them is.
    """
    losses = [
        float(np.linalg.norm(found - expected) / (np.linalg.norm(expected) or 1.0))
        for expected, found in zip(_in_float32(exact), _in_float32(lower), strict=True)
    ]
    return float(np.max(losses))  # which NaN passes, as it does not through max()


def _in_float32(outputs: tuple[npt.NDArray[Any], ...]) -> list[npt.NDArray[np.float32]]:
    pooled, *of_maps = outputs
    if not of_maps:
        return [pooled]
    maps, scale = of_maps
    return [pooled, maps.astype(np.float32) * scale[:, None, None, None]]
