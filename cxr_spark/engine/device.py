"""Which device a task computes on: the GPU that Spark gave it, or the processor."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

# Set on executors (spark.executorEnv.CXR_SPARK_PRETEND_GPUS=1), the GPUs that Spark hands out are
# logical devices of the processor, so that all that is done for GPUs can be tried without one.
PRETEND = "CXR_SPARK_PRETEND_GPUS"


class DeviceError(RuntimeError):
    """The device that Spark gave a task cannot be used; its text says what to set or install."""


@dataclass(frozen=True)
class Device:
    """A device by TensorFlow's name.

    Attributes:
        kind: 'GPU' or 'CPU'.
        index: among the devices of that kind that the process sees.
        address: what Spark calls the GPU; empty for the processor.
        pretended: whether it is a logical device of the processor that is treated as a GPU.
    """

    kind: Literal["CPU", "GPU"]
    index: int = 0
    address: str = ""
    pretended: bool = False

    @property
    def name(self) -> str:
        """TensorFlow's name, such as ``/GPU:0``."""
        return f"/{'CPU' if self.pretended else self.kind}:{self.index}"


CPU = Device("CPU")


def choose_device(addresses: Sequence[str], *, one_an_executor: bool) -> Device:
    """Return the device for the GPU addresses that Spark gave a task; none is the processor.

    One executor a GPU is the rule: its process then sees that GPU alone, by CUDA_VISIBLE_DEVICES,
    which counts only before the first use of TensorFlow. Where an executor has more, a reused
    worker is given another address from task to task, so it sees all of them and places by index.

    Args:
        addresses: of ``TaskContext.resources()["gpu"]``.
        one_an_executor: whether each executor has one GPU.

    Raises:
        DeviceError: more than one GPU was given to the task, or one of unknown index.
    """
    if not addresses:
        return CPU
    if len(addresses) > 1:
        raise DeviceError(
            f"a task computes on one GPU and was given {', '.join(addresses)}: "
            "set spark.task.resource.gpu.amount to 1"
        )
    (address,) = addresses
    if os.environ.get(PRETEND):
        return Device("GPU", int(address), address, pretended=True)
    os.environ["CUDA_DEVICE_ORDER"] = "PCI_BUS_ID"  # as nvidia-smi counts, and so Spark
    if one_an_executor:
        os.environ["CUDA_VISIBLE_DEVICES"] = address
        return Device("GPU", 0, address)
    visible = [name for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
    if address in visible:
        return Device("GPU", visible.index(address), address)
    if visible or not address.isdigit():
        raise DeviceError(
            f"expected the GPU {address} that Spark gave this task among CUDA_VISIBLE_DEVICES, "
            f"which is {','.join(visible) or 'not set'}: "
            "set spark.executor.resource.gpu.amount to 1"
        )
    return Device("GPU", int(address), address)
