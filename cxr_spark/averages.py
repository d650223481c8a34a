"""The averages of a run: scores of configurations that are trained, calibrated and averaged."""

from __future__ import annotations

import fnmatch
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from cxr_spark.config import Experiment
from cxr_spark.evaluation.average import average, average_held_out
from cxr_spark.evaluation.calibration import Scaling
from cxr_spark.files import write_json
from cxr_spark.training.run_folder import (
    AVERAGE,
    Configuration,
    clear_averages,
    cross_name,
    head_name,
    predictions_file,
    read_held_out,
    read_predictions,
    trained,
    write_predictions,
)

log = logging.getLogger(__name__)


def write_averages(run: Path, experiment: Experiment) -> None:
    """Write the predictions of every average anew, beside those of configurations."""
    clear_averages(run)
    if not experiment.averages:
        return
    records = trained(run)
    held_out = read_held_out(run, records)
    for name, patterns in experiment.averages.items():
        members = _members(name, patterns, records)
        if members:
            _write(run, name, members, held_out)


def _members(
    name: str, patterns: Sequence[str], records: Sequence[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return the records whose configuration an average names; none where it is one alone."""
    found = [
        record
        for record in records
        if any(fnmatch.fnmatchcase(record["configuration"], pattern) for pattern in patterns)
    ]
    known = list(dict.fromkeys(record["configuration"] for record in records))
    if len({record["configuration"] for record in found}) < 2:
        log.warning(
            "the average %s is left out: %s names fewer than two of the configurations that are "
            "trained, %s", name, ", ".join(patterns), ", ".join(known),
        )  # fmt: skip
        return []
    return found


def _write(
    run: Path,
    name: str,
    members: Sequence[dict[str, Any]],
    held_out: Mapping[str, pd.DataFrame],
) -> None:
    pixels = {record["preprocessing"] for record in members}
    configuration = Configuration(AVERAGE, pixels.pop() if len(pixels) == 1 else "mixed", name)
    names = list(dict.fromkeys(record["configuration"] for record in members))
    keys = {**vars(configuration), "configuration": configuration.name}
    seeds = sorted(
        set.intersection(
            *({r["seed"] for r in members if r["configuration"] == member} for member in names)
        )
    )
    if not seeds:
        log.warning("the average %s is left out: its configurations have no seed in common", name)
        return
    scalings: list[Scaling] = []
    for seed in seeds:
        of_seed = [record for record in members if record["seed"] == seed]
        averaged = average(
            [read_predictions(run, head_name(record["configuration"], seed)) for record in of_seed]
        )
        scalings = scalings or list(averaged.scalings)
        write_predictions(
            predictions_file(run, head_name(configuration.name, seed)),
            averaged.predictions.assign(**keys, seed=seed),
        )
        write_json(
            run / "heads" / f"{head_name(configuration.name, seed)}.json",
            {
                **keys,
                "seed": seed,
                "takes": "scores",
                "classes": of_seed[0]["classes"],
                "extraction": "+".join(dict.fromkeys(record["extraction"] for record in of_seed)),
                "weights": ", ".join(dict.fromkeys(record["weights"] for record in of_seed)),
                "train_seconds": 0.0,
                "history": {},
                "members": [
                    {
                        "configuration": record["configuration"],
                        "slope": scaling.slope,
                        "offset": scaling.offset.tolist(),
                    }
                    for record, scaling in zip(of_seed, averaged.scalings, strict=True)
                ],
            },
        )
    if all(member in held_out for member in names):
        table = average_held_out([held_out[member] for member in names], scalings)
        write_predictions(
            predictions_file(run, cross_name(configuration.name)), table.assign(**keys)
        )
    log.info("average %s of %d configurations: %s", name, len(names), ", ".join(names))
