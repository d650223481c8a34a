"""Backbones as frozen TensorFlow graphs: made once on the driver, loaded without Keras by workers.

To build a backbone with Keras takes a worker 1 to 15 s, to load its frozen graph 0.2 to 3 s.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy.typing as npt

from cxr_spark.engine.device import CPU, Device, DeviceError

if TYPE_CHECKING:
    from cxr_spark.engine.forward import Forward


@dataclass(frozen=True)
class FrozenGraph:
    """A graph whose variables are constants, so that batch normalisation folds into convolutions.

    Attributes:
        graph: a serialised ``GraphDef``.
        input_name: the tensor that takes float32 of shape (n_images, height, width, 1).
        output_names: the tensors of the features, in their order.
    """

    graph: bytes
    input_name: str
    output_names: tuple[str, ...]


def freeze(features: Callable[[Any], tuple[Any, ...]], image_size: tuple[int, int]) -> FrozenGraph:
    """Trace a function on grey pixels, for any number of images, and fold its variables."""
    import tensorflow as tf
    from tensorflow.python.framework.convert_to_constants import convert_variables_to_constants_v2

    signature = tf.TensorSpec((None, *image_size, 1), tf.float32)
    with _quiet_start():
        function = tf.function(features).get_concrete_function(signature)
        frozen = convert_variables_to_constants_v2(function)
    graph = frozen.graph.as_graph_def()
    for node in graph.node:
        node.device = ""  # where it runs is for the worker to say
    (grey,) = frozen.inputs
    return FrozenGraph(
        graph.SerializeToString(), grey.name, tuple(output.name for output in frozen.outputs)
    )


def load_graph(frozen: FrozenGraph, device: Device = CPU, *, threads: int = 0) -> Forward:
    """Return a frozen graph as a function of uint8 or float32 pixels.

    A ``Session`` takes a third of the time that ``tf.function`` takes to load the same graph.

    Args:
        frozen: what ``freeze`` returned.
        device: where it runs.
        threads: of one operation, for processors; 0 lets TensorFlow choose.

    Raises:
        DeviceError: TensorFlow does not see the device.
    """
    import tensorflow as tf

    # Or a newer GPU would round float32 to 10 bits, and features would not be a processor's.
    tf.config.experimental.enable_tensor_float_32_execution(False)
    v1 = tf.compat.v1
    definition = v1.GraphDef.FromString(frozen.graph)
    graph = tf.Graph()
    with graph.as_default(), tf.device(device.name):
        grey8 = v1.placeholder(tf.uint8, name="grey8")
        grey = tf.cast(grey8, tf.float32)
        outputs = tf.graph_util.import_graph_def(
            definition, {frozen.input_name: grey}, list(frozen.output_names), name=""
        )
    with graph.as_default():
        ready = tf.constant(0)
    with _quiet_start() as said:
        session = v1.Session(graph=graph, config=_session_config(device, threads))
        session.run(ready)  # of the first graph that runs, its optimiser says that it is there
        seen = {found.name.rpartition("device:")[2] for found in session.list_devices()}
    if device.name.removeprefix("/") not in seen:
        raise DeviceError(
            f"Spark gave this task the GPU {device.address}, and TensorFlow sees "
            f"{', '.join(sorted(seen))}. Install tensorflow[and-cuda] and the driver on executors. "
            f"TensorFlow said: {' / '.join(said[-3:]) or 'nothing'}"
        )
    # Float32 pixels are fed past the cast.
    by_dtype = {
        "uint8": session.make_callable(outputs, [grey8]),
        "float32": session.make_callable(outputs, [grey]),
    }

    def forward(pixels: npt.NDArray[Any]) -> tuple[npt.NDArray[Any], ...]:
        return tuple(by_dtype[pixels.dtype.name](pixels))

    return forward


def _session_config(device: Device, threads: int) -> Any:
    import tensorflow as tf

    config = tf.compat.v1.ConfigProto(
        intra_op_parallelism_threads=threads,
        inter_op_parallelism_threads=1 if threads == 1 else 0,
        allow_soft_placement=True,
    )
    if device.kind == "GPU":
        config.gpu_options.allow_growth = True
        optimizer = config.graph_options.optimizer_options
        optimizer.global_jit_level = optimizer.ON_1  # XLA; on processors it is slower
    if device.kind == "CPU" or device.pretended:
        config.device_count["GPU"] = 0  # or every session would open all that it sees
        config.device_count["CPU"] = device.index + 1
    return config


@contextmanager
def _quiet_start() -> Iterator[list[str]]:
    """Keep what TensorFlow's C++ says while a graph is made, before it obeys any log level.

    Yields:
        A list that holds its lines once the block has ended.
    """
    said: list[str] = []
    kept = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield said
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            said += file.read().decode(errors="replace").splitlines()
