from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from cxr_spark.backbones import BACKBONES, load_backbone
from cxr_spark.engine.device import Device
from cxr_spark.engine.forward import compile_forward, feature_function, precision_loss
from cxr_spark.engine.frozen import _session_config, freeze, load_graph
from cxr_spark.engine.pipeline import Batches, prepare, run_batches

SIZE = (80, 96)


# Pillow's and libjpeg's weights of red, green and blue in luma: ITU-R 601, in 65,536ths.
LUMA = np.array([19595, 38470, 7471])


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """A colour PNG of another size than the backbones take, and a grey JPEG of theirs."""
    folder, rng = tmp_path_factory.mktemp("files"), np.random.default_rng(0)
    coarse = rng.integers(0, 256, (10, 12, 3), np.uint8)
    colour = cv2.resize(coarse, (150, 110), interpolation=cv2.INTER_CUBIC)
    grey = cv2.resize(coarse[..., 0], SIZE[::-1], interpolation=cv2.INTER_CUBIC)
    paths = [folder / "colour.png", folder / "grey.jpeg"]
    for path, pixels in zip(paths, (colour, grey), strict=True):
        assert cv2.imwrite(str(path), pixels)
    return paths


@pytest.fixture(scope="module")
def small() -> object:
    """An untrained MobileNetV3Small, to be changed by no test."""
    return load_backbone("MobileNetV3Small", SIZE, "random")


def three_channels(path: Path) -> np.ndarray:
    """Return a file's luma three times over, made without any of our code."""
    import tensorflow as tf

    pixels = np.asarray(Image.open(path))
    if pixels.ndim == 3:
        pixels = ((pixels.astype(np.int64) @ LUMA + 0x8000) >> 16).astype(np.uint8)
    resized = tf.image.resize(pixels[..., None].astype(np.float32), SIZE).numpy()
    return np.repeat(resized, 3, axis=-1)


def distance(found: np.ndarray, expected: np.ndarray) -> np.ndarray:
    """Return the relative L2 distance of each row."""
    return np.linalg.norm(found - expected, axis=1) / np.linalg.norm(expected, axis=1)


@pytest.mark.parametrize("name", BACKBONES)
def test_features_of_files_are_those_of_keras_own_preprocessing_and_network(
    name: str, files: list[Path]
) -> None:
    import keras

    model = load_backbone(name, SIZE, "random")
    assert model.count_params() > 0
    assert not model.trainable_weights
    module = getattr(keras.applications, BACKBONES[name].module)
    images = [prepare(os.fsencode(path), SIZE) for path in files]
    assert [image.pixels.dtype.name for image in images] == ["float32", "uint8"]
    raw = np.stack([three_channels(path) for path in files])
    prepared = module.preprocess_input(raw.copy())
    # Where the two differ at all, they are told apart by far more than the distance allowed.
    given = {"none": raw, "keras": prepared}
    if BACKBONES[name].expects_raw:
        assert np.array_equal(prepared, raw)
        del given["none"]
    pooled_by = {}
    for preprocessing, pixels in given.items():
        expected_map = model(pixels, training=False).numpy()
        forward = compile_forward(model, name, preprocessing, feature_maps=True)
        batches = Batches([image.pixels for image in images], 2, on_gpu=False)
        pooled, half, scale = run_batches(forward, batches)
        assert (pooled.dtype, half.dtype, scale.dtype) == (np.float32, np.float16, np.float32)
        assert half.shape == (2, *model.output_shape[1:])
        assert scale == pytest.approx(np.abs(expected_map).max(axis=(1, 2, 3)), rel=1e-4)
        feature_map = half.astype(np.float32) * scale[:, None, None, None]
        assert np.abs(feature_map - expected_map).max() < 1e-3 * scale.max()
        assert distance(pooled, expected_map.mean(axis=(1, 2))).max() <= 1e-5
        pooled_by[preprocessing] = pooled
    if "none" in given:
        assert (distance(pooled_by["none"], pooled_by["keras"]) > 1e-2).all()


def test_an_images_features_do_not_depend_on_the_rest_of_its_batch(
    small, rng: np.random.Generator
) -> None:
    forward = compile_forward(small, "MobileNetV3Small", "none", feature_maps=False)
    batch = rng.uniform(0, 255, (4, *SIZE, 1)).astype(np.float32)
    (alone,) = forward(
        np.concatenate([np.zeros_like(batch[:2]), batch[:1], np.zeros_like(batch[:1])])
    )
    (together,) = forward(batch)
    assert np.linalg.norm(alone[2] - together[0]) <= 1e-5 * np.linalg.norm(together[0])


def test_whole_grey_levels_may_come_as_bytes(small, rng: np.random.Generator) -> None:
    forward = compile_forward(small, "MobileNetV3Small", "none", feature_maps=True)
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
    name: str, precision: str, low: float, high: float, small, rng: np.random.Generator
) -> None:
    model = small if name == "MobileNetV3Small" else load_backbone(name, SIZE, "random")
    grey = rng.uniform(0, 255, (2, *SIZE, 1)).astype(np.float32)
    exact, lower = (
        compile_forward(model, name, "none", feature_maps=True, precision=kind)(grey)
        for kind in ("float32", precision)
    )
    assert low < precision_loss(exact[:1], lower[:1]) < high
    assert precision_loss(exact, lower) >= precision_loss(exact[:1], lower[:1])


@pytest.mark.parametrize(
    ("device", "jit", "cpus"),
    [
        (Device("CPU", 1), 0, 2),
        (Device("GPU", 1, "1"), 1, 0),
        (Device("GPU", 1, "1", pretended=True), 1, 2),
    ],
)
def test_a_gpu_takes_the_memory_it_needs_and_xla(device: Device, jit: int, cpus: int) -> None:
    config = _session_config(device, 3)
    assert config.graph_options.optimizer_options.global_jit_level == jit
    assert config.gpu_options.allow_growth == (jit == 1)
    assert config.device_count["CPU"] == cpus
    assert ("GPU" in config.device_count) == (cpus > 0)  # as 0: a processor's opens none


def test_features_are_the_same_compiled_by_xla(small, rng: np.random.Generator) -> None:
    """As graphs run on GPUs; here XLA compiles for the processor."""
    import tensorflow as tf

    _, features = feature_function(small, "MobileNetV3Small", "none", feature_maps=True)
    grey = tf.constant(rng.integers(0, 256, (2, *SIZE, 1), dtype=np.uint8))
    plain, compiled = (tf.function(features, jit_compile=jit)(grey) for jit in (False, True))
    assert distance(compiled[0].numpy(), plain[0].numpy()).max() <= 1e-5
    half, exact = (outputs[1].numpy().astype(np.float32) for outputs in (compiled, plain))
    assert np.abs(half - exact).max() <= 2e-3 * np.abs(exact).max()


ON_XLA = """
import sys
import numpy as np
from cxr_spark.engine.device import Device
from cxr_spark.engine.frozen import FrozenGraph, load_graph

with np.load(sys.argv[1]) as given:
    graph = FrozenGraph(given["graph"].tobytes(), str(given["input"]), tuple(given["outputs"]))
    forward = load_graph(graph, Device("GPU", 0, "0", pretended=True), threads=1)
    np.savez(sys.argv[2], *forward(given["grey"]))
"""


def test_a_graph_as_workers_load_it_for_gpus_is_compiled_by_xla(
    small, rng: np.random.Generator, tmp_path: Path
) -> None:
    """In a process of its own, in which XLA may compile for a processor and keeps what it has."""
    _, features = feature_function(small, "MobileNetV3Small", "none", feature_maps=True)
    graph = freeze(features, SIZE)
    grey = rng.integers(0, 256, (2, *SIZE, 1), dtype=np.uint8)
    given, found, compiled = (tmp_path / name for name in ("given.npz", "found.npz", "compiled"))
    np.savez(
        given, graph=np.frombuffer(graph.graph, np.uint8), input=graph.input_name,
        outputs=graph.output_names, grey=grey,
    )  # fmt: skip
    flags = {
        "TF_XLA_FLAGS": "--tf_xla_cpu_global_jit",
        "XLA_FLAGS": f"--xla_dump_to={compiled} --xla_dump_hlo_as_text",
    }
    done = subprocess.run(
        [sys.executable, "-c", ON_XLA, given, found], env={**os.environ, **flags},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    assert any("convolution" in file.read_text() for file in compiled.glob("*cluster*.txt"))
    expected = load_graph(graph)(grey)
    with np.load(found) as arrays:
        pooled, half, scale = arrays.values()
    assert distance(pooled, expected[0]).max() <= 1e-5
    assert np.abs(half.astype(np.float32) - expected[1].astype(np.float32)).max() <= 2e-3
    assert scale == pytest.approx(expected[2], rel=1e-5)


def test_float32_is_not_rounded_on_newer_gpus(small) -> None:
    import tensorflow as tf

    tf.config.experimental.enable_tensor_float_32_execution(True)
    compile_forward(small, "MobileNetV3Small", "none", feature_maps=False)
    assert not tf.config.experimental.tensor_float_32_execution_enabled()


def test_a_graph_runs_on_the_device_it_is_given_and_on_no_other(
    small, rng: np.random.Generator
) -> None:
    _, features = feature_function(small, "MobileNetV3Small", "none", feature_maps=False)
    graph = freeze(features, SIZE)
    grey = rng.uniform(0, 255, (2, *SIZE, 1)).astype(np.float32)
    (first,) = load_graph(graph)(grey)
    (second,) = load_graph(graph, Device("CPU", 1), threads=1)(grey)
    assert np.linalg.norm(first - second) < 1e-5 * np.linalg.norm(first)
    with pytest.raises(RuntimeError, match=r"the GPU 3, and TensorFlow sees CPU:0\."):
        load_graph(graph, Device("GPU", 3, "3"))
