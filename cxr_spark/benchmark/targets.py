"""The table of targets: how good a ratio must be to be good enough."""

from __future__ import annotations

import re
from typing import Literal

Measure = Literal["marginal", "whole process"]


# The smallest ratio of our rate by a program's that is good enough: by the file name of the program
# without .py, what is measured, and the backbone.
TARGETS: dict[tuple[str, Measure, str], float] = {
    ("ceiling", "marginal", "MobileNetV3Small"): 0.90,
    ("ceiling", "marginal", "ResNet50"): 0.95,
    ("keras_loop", "marginal", "MobileNetV3Small"): 1.4,
    ("spark_recipe", "marginal", "MobileNetV3Small"): 3.3,
    ("spark_recipe", "whole process", "MobileNetV3Small"): 2.5,
    ("paper_grid", "whole process", "MobileNetV3Small"): 2.5,
    ("paper_grid", "whole process", "ResNet50"): 5.0,
}

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
