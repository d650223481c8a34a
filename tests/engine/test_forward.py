from __future__ import annotations

import numpy as np
import pytest

from cxr_spark.backbones import BACKBONES, load_backbone
from cxr_spark.engine.device import Device
from cxr_spark.engine.forward import compile_forward, feature_function, precision_loss
from cxr_spark.engine.frozen import freeze, load_graph

SIZE = (80, 96)


@pytest.mark.parametrize("preprocessing", ["none", "keras"])
@pytest.mark.parametrize("name", BACKBONES)
def test_features_are_those_of_keras_on_repeated_grey(
    name: str, preprocessing: str, rng: np.random.Generator
) -> None:
    import keras

    grey = rng.uniform(0, 255, (2, *SIZE, 1)).astype(np.float32)
    model = load_backbone(name, SIZE, "random")
    assert model.count_params() > 0
    assert not model.trainable_weights
    pixels = np.repeat(grey, 3, axis=-1)
    if preprocessing == "keras":
        module = getattr(keras.applications, BACKBONES[name].module)
        pixels = module.preprocess_input(pixels.copy())
    expected_map = model(pixels, training=False).numpy()
    forward = compile_forward(model, name, preprocessing, feature_maps=True)
    pooled, half, scale = forward(grey)
    assert (pooled.dtype, half.dtype, scale.dtype) == (np.float32, np.float16, np.float32)
    assert half.shape == (2, *model.output_shape[1:])
    assert scale == pytest.approx(np.abs(expected_map).max(axis=(1, 2, 3)), rel=1e-4)
    feature_map = half.astype(np.float32) * scale[:, None, None, None]
    assert np.abs(feature_map - expected_map).max() < 1e-3 * scale.max()
    assert np.linalg.norm(pooled - expected_map.mean(axis=(1, 2))) < 1e-4 * np.linalg.norm(pooled)


def test_an_images_features_do_not_depend_on_the_rest_of_its_batch(
    rng: np.random.Generator,
) -> None:
    model = load_backbone("MobileNetV3Small", SIZE, "random")
    forward = compile_forward(model, "MobileNetV3Small", "none", feature_maps=False)
    batch = rng.uniform(0, 255, (4, *SIZE, 1)).astype(np.float32)
    (alone,) = forward(
        np.concatenate([np.zeros_like(batch[:2]), batch[:1], np.zeros_like(batch[:1])])
    )
    (together,) = forward(batch)
    assert np.linalg.norm(alone[2] - together[0]) <= 1e-5 * np.linalg.norm(together[0])


def test_whole_grey_levels_may_come_as_bytes(rng: np.random.Generator) -> None:
    model = load_backbone("MobileNetV3Small", SIZE, "random")
    forward = compile_forward(model, "MobileNetV3Small", "none", feature_maps=True)
    grey = rng.integers(0, 256, (2, *SIZE, 1), dtype=np.uint8)
    for one, other in zip(forward(grey), forward(grey.astype(np.float32)), strict=True):
        assert np.array_equal(one, other)


def test_a_map_of_zeros_has_scale_zero_and_stays_zeros() -> None:
    model = load_backbone("MobileNetV3Small", SIZE, "random")
    for variable in model.weights:
        variable.assign(0 * variable)
    forward = compile_forward(model, "MobileNetV3Small", "none", feature_maps=True)
    pooled, half, scale = forward(np.full((1, *SIZE, 1), 9, np.float32))
    assert not pooled.any()
    assert not half.any()
    assert scale.tolist() == [0.0]


@pytest.mark.parametrize(
    ("name", "precision", "low", "high"),
    [
        ("DenseNet121", "float16", 1e-6, 1e-2),
        ("MobileNetV3Small", "bfloat16", 1e-4, 0.2),
        ("MobileNetV3Small", "float16", 0.9, 1.1),  # untrained, its features of 1e-10 become zeros
    ],
)
def test_what_a_lower_precision_loses(
    name: str, precision: str, low: float, high: float, rng: np.random.Generator
) -> None:
    model = load_backbone(name, SIZE, "random")
    exact, lower = (
        compile_forward(model, name, "none", feature_maps=False, precision=kind)
        for kind in ("float32", precision)
    )
    loss = precision_loss(exact, lower, rng.uniform(0, 255, (2, *SIZE, 1)).astype(np.float32))
    assert low < loss < high


def test_a_graph_runs_on_the_device_it_is_given_and_on_no_other(rng: np.random.Generator) -> None:
    model = load_backbone("MobileNetV3Small", SIZE, "random")
    _, features = feature_function(model, "MobileNetV3Small", "none", feature_maps=False)
    graph = freeze(features, SIZE)
    grey = rng.uniform(0, 255, (2, *SIZE, 1)).astype(np.float32)
    (first,) = load_graph(graph)(grey)
    (second,) = load_graph(graph, Device("CPU", 1), threads=1)(grey)
    assert np.linalg.norm(first - second) < 1e-5 * np.linalg.norm(first)
    with pytest.raises(RuntimeError, match=r"the GPU 3, and TensorFlow sees CPU:0\."):
        load_graph(graph, Device("GPU", 3, "3"))
