"""The table of targets: how good a ratio must be to be good enough."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Measure = Literal["marginal", "whole process"]


@dataclass(frozen=True)
class Target:
    """The smallest ratio of our rate by a program's that is good enough.

    Attributes:
        program: the file name of a peer, without .py.
        measure: of the marginal rates or of whole processes.
        ratio: ours by the program's.
        backbone: the one it holds for; None for all that have no row of their own.
    """

    program: str
    measure: Measure
    ratio: float
    backbone: str | None = None


TARGETS = (
    Target("ceiling", "marginal", 0.90, backbone="MobileNetV3Small"),
    Target("ceiling", "marginal", 0.95, backbone="ResNet50"),
    Target("keras_loop", "marginal", 1.4, backbone="MobileNetV3Small"),
    Target("spark_recipe", "marginal", 3.3, backbone="MobileNetV3Small"),
    Target("spark_recipe", "whole process", 2.5, backbone="MobileNetV3Small"),
    Target("paper_grid", "whole process", 2.5, backbone="MobileNetV3Small"),
    Target("paper_grid", "whole process", 5.0, backbone="ResNet50"),
)

# Rows a second of pooled features read, of pyarrow's and NumPy's; images a second, of Keras' fit.
READER = 0.75
TRAINING = 0.95

# Our extraction in other ways: with maps, of without; from one core to all, of how much faster bare
# processes become; several backbones in one pass, of their forward passes and one decoding.
MAPS = 0.85
CORES = 0.95
PASS = 0.95
# A worker's peak memory over a tenth of the images, of its peak over all.
MEMORY = 1 / 1.1

# Of what the slower of decoding and the forward pass would let through alone, on a GPU.
CORE_ON_GPU = 0.85

# Images a second of ResNet50 at 224 px in mixed precision: what NVIDIA's Deep Learning Examples
# state of one A100 with TensorFlow and XLA, rounded down. A GPU of these is as fast or faster.
A100_RESNET50 = 3_900
AS_AN_A100 = re.compile(r"\b(A100|H100|H200|H800|GH200|B100|B200|B300|GB200|GB300)\b")


def find_target(program: str, measure: Measure, backbone: str) -> float | None:
    """Return the target of a program, or None where it has none."""
    found = {
        target.backbone: target.ratio
        for target in TARGETS
        if (target.program, target.measure) == (program, measure)
    }
    return found.get(backbone, found.get(None))
