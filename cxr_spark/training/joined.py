"""Features of several backbones side by side, as of one backbone of more channels."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cxr_spark.config import Experiment
from cxr_spark.errors import UserError
from cxr_spark.extraction.store import ExtractionRecord
from cxr_spark.paths import AnyPath
from cxr_spark.training.classifiers import Classifier
from cxr_spark.training.head_table import head_table
from cxr_spark.training.inputs import GIGABYTE, InMemory, Inputs, image_bytes, open_inputs
from cxr_spark.training.reader import feature_shape, read_inputs
from cxr_spark.training.spaces import Tuned

log = logging.getLogger(__name__)

Records = tuple[ExtractionRecord, ...]


def join_backbones(
    chosen: Mapping[tuple[str, str], ExtractionRecord], concatenations: Sequence[str]
) -> dict[tuple[str, str], Records]:
    """Return what configurations are trained on: each extraction, and those that are joined.

    Args:
        chosen: the extraction of each backbone and preprocessing.
        concatenations: names of backbones with '+' between them; one that names a backbone which
            is not chosen is left out, with a warning.
    """
    sources: dict[tuple[str, str], Records] = {key: (record,) for key, record in chosen.items()}
    for name in concatenations:
        lacking = {*name.split("+")} - {backbone for backbone, _ in chosen}
        if lacking:
            log.warning("%s is left out: no %s in this run", name, ", ".join(sorted(lacking)))
            continue
        for preprocessing in dict.fromkeys(of for _, of in chosen):
            parts = [chosen[backbone, preprocessing] for backbone in name.split("+")]
            sources[name, preprocessing] = tuple(parts)
    return sources


def open_joined(
    features: AnyPath,
    records: Records,
    takes: str,
    image_id: npt.NDArray[Any],
    *,
    memory_gb: float,
) -> Inputs:
    """Open the features of one extraction, or read those of several into memory, side by side.

    Args:
        features, takes, image_id, memory_gb: as for ``open_inputs``.
        records: the extractions; of more than one, pooled features that ``check_memory`` passed.

    Raises:
        UserError: as for ``reader.read_inputs``.
    """
    if len(records) == 1:
        return open_inputs(features, records[0], takes, image_id, memory_gb=memory_gb)
    parts = [read_inputs(features, record, takes, image_id)[0] for record in records]
    return InMemory(np.concatenate(parts, axis=1))


def size_gb(features: AnyPath, records: Records, takes: str, n_images: int) -> float:
    """Return what the features of images would take in memory, in 10^9 bytes.

    Raises:
        UserError: as for ``reader.feature_shape``.
    """
    return sum(
        image_bytes(feature_shape(features, record, takes), takes) * n_images / GIGABYTE
        for record in records
    )


def check_memory(features: AnyPath, sources: Iterable[Records], experiment: Experiment) -> None:
    """Refuse what cannot be trained while features stream, before anything is written.

    Raises:
        UserError: names the classifier or the backbones, and what they would take.
    """
    table = head_table(experiment)
    rows = [table[name] for name in experiment.heads]
    whole = [
        row.name
        for row in rows
        if isinstance(row.of if isinstance(row, Tuned) else row, Classifier)
    ]
    for records in sources:
        joined = len(records) > 1
        if not (whole or joined):
            continue
        gigabytes = size_gb(features, records, "pooled", records[0].n_rows)
        if gigabytes > experiment.training.memory_gb:
            names = "+".join(record.identity.backbone for record in records)
            raise UserError(
                "Expected pooled features that fit training.memory_gb, as "
                f"{'features side by side' if joined else whole[0]} must. Received: "
                f"{gigabytes:.2f} GB of {names} and {experiment.training.memory_gb:g}. Raise it, "
                f"or leave {names if joined else ', '.join(whole)} out."
            )
