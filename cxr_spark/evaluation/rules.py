"""How measures are made; nothing of it is chosen by test images."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

# What chooses a threshold; see ``thresholds.choose_threshold``.
THRESHOLD_RULE = re.compile(r"youden|(sensitivity|specificity)=(0?\.\d+|1(?:\.0*)?)")


@dataclass(frozen=True)
class Rules:
    """How measures are made.

    Attributes:
        positive: index of the positive class of a two-class task; None for more classes, which have
            no threshold, and whose AUC is the macro average of one against the rest.
        threshold: by which validation images choose it, as ``THRESHOLD_RULE`` says.
        calibration: how scores are scaled, by validation images, before calibration is measured;
            None takes them as they are.
        n_resamples: how often patients are drawn for bootstrap intervals.
    """

    positive: int | None
    threshold: str = "youden"
    calibration: Literal["temperature", "platt"] | None = None
    n_resamples: int = 2000
