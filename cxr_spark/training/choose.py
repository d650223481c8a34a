"""Which extractions of a features folder an experiment trains on."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from cxr_spark.config import Experiment
from cxr_spark.errors import UserError
from cxr_spark.extraction.store import (
    CONTRACT,
    ExtractionRecord,
    check_files,
    list_extractions,
)
from cxr_spark.paths import AnyPath
from cxr_spark.training.head_table import HeadRow, head_table

log = logging.getLogger(__name__)


def choose_extractions(
    features: AnyPath, experiment: Experiment
) -> dict[tuple[str, str], ExtractionRecord]:
    """Return the extraction to train on for each backbone and preprocessing of the experiment.

    Raises:
        UserError: there is none, there are several of a backbone and ``extraction`` does not
            choose, they are of another contract or of different images, files of one are missing
            or not its own, or a head needs feature maps that are not stored.
    """
    if not features.is_dir():
        raise UserError(
            f"Expected a features folder under --features. Received: {features}. Run extract first."
        )
    found = list_extractions(features)
    stored = [record for record in found if record.identity.contract == CONTRACT]
    unknown = set(experiment.extraction) - {record.fingerprint for record in stored}
    if unknown:
        raise UserError(
            f"Expected --extraction to name extractions of {features}. "
            f"Received: {', '.join(sorted(unknown))}. "
            f"There are: {_list(stored) or f'none of contract {CONTRACT}'}"
        )
    chosen: dict[tuple[str, str], ExtractionRecord] = {
        (backbone, preprocessing): _choose_one(features, found, experiment, backbone, preprocessing)
        for backbone in experiment.backbones
        for preprocessing in experiment.preprocessing
    }
    for record in chosen.values():
        if record.identity.precision != experiment.precision:
            log.warning(
                "precision is %s, and these features are not: %s",
                experiment.precision, record.describe(),
            )  # fmt: skip
    for record in chosen.values():
        check_files(features, record)
    _check_same_images(features, list(chosen.values()))
    _check_same_weights(list(chosen.values()))
    table = head_table(experiment)
    _check_feature_maps(list(chosen.values()), [table[head] for head in experiment.heads])
    return chosen


def _choose_one(
    features: AnyPath,
    found: Sequence[ExtractionRecord],
    experiment: Experiment,
    backbone: str,
    preprocessing: str,
) -> ExtractionRecord:
    """Return the one extraction of a backbone and preprocessing, or refuse to guess."""
    of_backbone = [
        record
        for record in found
        if (record.identity.backbone, record.identity.contract) == (backbone, CONTRACT)
    ]
    named = [record for record in of_backbone if record.fingerprint in experiment.extraction]
    candidates = named or of_backbone
    wanted = (preprocessing, experiment.image_size)
    fitting = [
        record
        for record in candidates
        if (record.identity.preprocessing, record.identity.image_size) == wanted
    ]
    if len(fitting) == 1 and len(candidates) <= len(experiment.preprocessing):
        return fitting[0]
    if fitting:
        raise UserError(
            f"Expected one extraction of {backbone} in {features}, or --extraction FINGERPRINT to "
            f"choose. Received: {_list(candidates)}"
        )
    size = "x".join(str(side) for side in experiment.image_size)
    raise UserError(
        f"Expected an extraction of {backbone}, preprocessing {preprocessing}, {size}, contract "
        f"{CONTRACT}. Received: {features}, which holds {_list(found) or 'none'}. "
        "Run extract with this configuration, or name by --backbones what there is."
    )


def _list(records: Sequence[ExtractionRecord]) -> str:
    return "; ".join(record.describe() for record in records)


def _check_same_images(features: AnyPath, records: Sequence[ExtractionRecord]) -> None:
    if len({record.listing_digest for record in records}) > 1:
        raise UserError(
            f"Expected extractions of the same images in {features}. Received: {_list(records)}. "
            "Extract again with --overwrite."
        )


def _check_same_weights(records: Sequence[ExtractionRecord]) -> None:
    for backbone in {record.identity.backbone for record in records}:
        of_backbone = [record for record in records if record.identity.backbone == backbone]
        if len({record.identity.weights_digest for record in of_backbone}) > 1:
            raise UserError(
                f"Expected the same weights of {backbone} with every preprocessing. "
                f"Received: {_list(of_backbone)}. Choose by --extraction, or extract again."
            )


def _check_feature_maps(records: Sequence[ExtractionRecord], heads: Sequence[HeadRow]) -> None:
    need = [head.name for head in heads if head.takes == "feature_map"]
    lacking = [record.identity.backbone for record in records if record.feature_map_shape is None]
    if need and lacking:
        raise UserError(
            f"Expected feature maps, which the head {need[0]} takes. "
            f"Received: pooled features alone of {', '.join(lacking)}. "
            f"Run extract with --feature-maps, or leave {need[0]} out of --heads."
        )
