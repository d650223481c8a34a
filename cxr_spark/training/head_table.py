"""The one table of heads that an experiment may name: networks, classifiers, tuned, its own."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cxr_spark.training.classifiers import CLASSIFIERS, Classifier
from cxr_spark.training.heads import HEADS, Head
from cxr_spark.training.spaces import TUNED, Tuned

if TYPE_CHECKING:
    from cxr_spark.config import Experiment

HeadRow = Head | Classifier | Tuned
TABLE: dict[str, HeadRow] = {**HEADS, **CLASSIFIERS, **TUNED}


def head_table(experiment: Experiment) -> dict[str, HeadRow]:
    """Return all heads that an experiment may name, its ``custom_heads`` among them."""
    own = {
        name: Head(name, **{**dict(stated), "dense": tuple(stated.dense)})
        for name, stated in experiment.custom_heads.items()
    }
    return {**TABLE, **own}
