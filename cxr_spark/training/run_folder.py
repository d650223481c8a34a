"""The run folder on disk: what an experiment was, its heads and its predictions.

    RUN/
      experiment.json               the resolved experiment, versions, seeds, fingerprints,
                                    the images' account
      heads/<name>.keras            a trained head, without optimizer state
      heads/<name>.json             how it was trained: history by epoch, seconds
      predictions/<name>.parquet    a row for every image, in the columns below;
                                  <configuration>-cross.parquet a row for every image held out
      tuning/<configuration>.json   the trials of a search for a head's parameters
      leaks.csv                     pairs of images of two splits that are one X-ray, or nearly
      mlflow.json                   what marks this run in MLflow, where it was logged

A <name> is ``<configuration>-seed<seed>``.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from cxr_spark.config import Experiment
from cxr_spark.errors import UserError
from cxr_spark.files import check_writable, refuse_links, replacing, write_json

PREDICTION_SCHEMA = pa.schema(
    [
        ("configuration", pa.string()),
        ("backbone", pa.string()),
        ("preprocessing", pa.string()),
        ("head", pa.string()),
        ("seed", pa.int32()),
        ("split", pa.string()),
        ("image_id", pa.string()),
        ("patient_id", pa.string()),
        ("label", pa.int32()),
        ("repeat", pa.int32()),
        ("fold", pa.int32()),
        ("score", pa.list_(pa.float32())),
    ]
)

# Not compared: where results go, images lie, and how scores are measured train no head anew.
_PLACES = {
    "name", "images", "features", "run", "feature_maps", "evaluation", "averages",
}  # fmt: skip
# Compared only where a head was tuned by them.
_SEARCHES = {"cross_validation", "tuning"}
# Not stored: the extractions themselves tell it, and are compared by their digests; the address of
# MLflow may hold a password; where heads are trained stands in the command.
_TOLD_ELSEWHERE = {
    "weights", "precision", "limit", "extraction", "overwrite", "refresh", "max_error_fraction",
    "mlflow", "distribute_heads",
}  # fmt: skip
# These may grow: more heads and seeds of the same experiment join what is there.
_GROWING = ("heads", "seeds", "concatenations")
_OURS = (
    "experiment.json", "heads", "predictions", "tuning", "results.csv", "results.json",
    "leaks.csv", "model_card.md", "report.html", "figures", "mlflow.json",
)  # fmt: skip


CROSS = "-cross"
# Nothing that is being written stands still so long.
UNFINISHED_S = 600.0
AVERAGE = "average"  # what stands for a backbone's name where scores of several are averaged


@dataclass(frozen=True)
class Configuration:
    """A backbone, its preprocessing and a head: one thing that the experiment compares."""

    backbone: str
    preprocessing: str
    head: str

    @property
    def name(self) -> str:
        """The name that tables and files carry."""
        return f"{self.backbone}-{self.preprocessing}-{self.head}"


def head_name(configuration: str, seed: int) -> str:
    """Return the name that a trained head's files carry."""
    return f"{configuration}-seed{seed}"


def is_trained(run: Path, configuration: str, seed: int) -> bool:
    """Return whether the run folder holds a trained head, whole."""
    return (run / "heads" / f"{head_name(configuration, seed)}.json").exists()


def cross_name(configuration: str) -> str:
    """Return the name that the cross-validation of a configuration carries."""
    return f"{configuration}{CROSS}"


def predictions_file(run: Path, name: str) -> Path:
    """Return where predictions of a name lie."""
    return run / "predictions" / f"{name}.parquet"


def trials_file(run: Path, configuration: str) -> Path:
    """Return where the trials of a tuned configuration lie."""
    return run / "tuning" / f"{configuration}.json"


def check_run(run: Path, experiment: Experiment) -> None:
    """Refuse a run folder of another experiment; write nothing.

    Raises:
        UserError: the folder holds another experiment, a link or what is no run, or cannot be
            written.
    """
    check_writable(run, "run")
    refuse_links(run, "run")
    if not (run / "experiment.json").exists():
        foreign = [name for name in _OURS if (run / name).exists()]
        if foreign:
            raise UserError(
                f"Expected --run to be new or to hold a run. Received: {run}, which holds "
                f"{foreign[0]} but no experiment.json. Give another --run."
            )
        return
    if experiment.overwrite:
        return
    stated, stored = _stated(experiment), _completed(read_experiment(run)["experiment"])
    compared = {*stated, *stored} - _PLACES - {*_GROWING}
    if not any((run / "tuning").glob("[!_]*.json")):
        compared -= _SEARCHES
    for content in (stored, stated):  # how much memory there is makes no other experiment
        content.get("training", {}).pop("memory_gb", None)
    known, own = (content.get("custom_heads", {}) for content in (stored, stated))
    stated["custom_heads"] = {**own, **{k: v for k, v in known.items() if k not in own}}
    stored["custom_heads"] = {**stated["custom_heads"], **known}
    different = sorted(key for key in compared if stated.get(key) != stored.get(key))
    if different:
        key = different[0]
        raise UserError(
            f"Expected --run to be new or to hold this experiment. Received: {run}, which differs "
            f"in {', '.join(different)} ({key} was {stored.get(key)!r}, is {stated.get(key)!r}). "
            "Give another --run, or --overwrite to start afresh."
        )


def begin_run(run: Path, experiment: Experiment) -> None:
    """Make the run folder this experiment's, or go on with it where it is already.

    Raises:
        UserError: as for ``check_run``.
    """
    check_run(run, experiment)
    stated = _stated(experiment)
    if experiment.overwrite:
        clear_run(run)
    if not (run / "experiment.json").exists():
        run.mkdir(parents=True, exist_ok=True)
        write_json(run / "experiment.json", {"experiment": stated})
        return
    stored = read_experiment(run)["experiment"]
    if _folds_of(stored) != _folds_of(stated):
        for file in (run / "predictions").glob(f"*{CROSS}.parquet"):
            file.unlink()
    stated["custom_heads"] = {**stored.get("custom_heads", {}), **stated["custom_heads"]}
    for name in _GROWING:
        stated[name] = list(dict.fromkeys([*stored.get(name, []), *stated[name]]))
    update_experiment(run, experiment=stated)


def _folds_of(stated: dict[str, Any]) -> tuple[int, int] | None:
    settings = stated.get("cross_validation")
    return (settings["folds"], settings["repeats"]) if settings else None


def check_same_features(
    run: Path, fingerprints: set[str], images: tuple[str, int] | None = None
) -> None:
    """Refuse to go on with a run whose heads were trained on other features.

    Args:
        run: the run folder.
        fingerprints: of the extractions to train on.
        images: the digest of their listing, and how many of them have features, which grows where
            one can be read at last; None where it is not known yet.

    Raises:
        UserError: the run folder tells of other extractions, or of other images.
    """
    content = read_experiment(run) if (run / "experiment.json").exists() else {}
    if "extractions" not in content:
        return
    before = {extraction["fingerprint"] for extraction in content["extractions"]}
    before_images = (content["images"]["listing_digest"], content["images"]["n_rows"])
    other_images = images not in (None, before_images)
    if before != fingerprints or other_images:
        raise UserError(
            f"Expected the features that {run} was trained on, {', '.join(sorted(before))}. "
            f"Received: {', '.join(sorted(fingerprints))}"
            f"{' of other images' if other_images else ''}. "
            "Give another --run, or --overwrite to start afresh."
        )


def _stated(experiment: Experiment) -> dict[str, Any]:
    """Return the experiment as JSON, without what the extractions themselves tell."""
    content: dict[str, Any] = json.loads(experiment.model_dump_json(exclude=_TOLD_ELSEWHERE))
    return content


def _completed(stored: dict[str, Any]) -> dict[str, Any]:
    """Return a stored experiment with the defaults of keys that were not there when it was made."""
    try:
        return _stated(Experiment.model_validate(stored))
    except (ValueError, UserError):  # of a version whose keys are no longer known
        return stored


def clear_averages(run: Path) -> None:
    """Remove the averages of a run, which are made anew whenever what they are of may differ."""
    for file in (*run.glob(f"heads/{AVERAGE}-*.json"), *run.glob(f"predictions/{AVERAGE}-*")):
        file.unlink()


def clear_unfinished(run: Path) -> None:
    """Remove what was being written when a run was killed, and what is no longer written to."""
    now = time.time()
    for name in ("heads", "predictions", "tuning"):
        for file in (run / name).glob("_*"):
            with contextlib.suppress(FileNotFoundError):
                if now - file.stat().st_mtime > UNFINISHED_S:
                    file.unlink()


def clear_run(run: Path) -> None:
    """Remove what a run writes, and nothing else that its folder may hold.

    Last of all goes what says that it is a run: where this is stopped, it can be done again.
    """
    for name in reversed(_OURS):
        place = run / name
        if place.is_dir():
            shutil.rmtree(place)
        else:
            place.unlink(missing_ok=True)


def read_experiment(run: Path) -> dict[str, Any]:
    """Return the content of ``experiment.json``.

    Raises:
        UserError: it is missing or no JSON.
    """
    expected = "--run to hold the experiment.json of a run"
    return _read_object(run / "experiment.json", "experiment", expected, str(run))


def _read_object(
    file: Path, key: str, expected: str, received: str, remedy: str = ""
) -> dict[str, Any]:
    """Read a JSON object that has ``key``, or raise a UserError in the given words."""
    try:
        content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        content[key]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"Expected {expected}. Received: {received} ({error}){remedy}") from error
    return content


def update_experiment(run: Path, **sections: Any) -> None:
    """Add sections to ``experiment.json``, or replace those of the same name."""
    write_json(run / "experiment.json", {**read_experiment(run), **sections})


def trained(run: Path) -> list[dict[str, Any]]:
    """Return the record of every head of the run that is trained, in the order they were asked for.

    Raises:
        UserError: there is none.
    """
    records = [_read_head(file) for file in (run / "heads").glob("[!_]*.json")]
    if not records:
        raise UserError(
            f"Expected --run to hold trained heads. Received: {run}, which holds none. "
            "Run train first."
        )
    stated = read_experiment(run)["experiment"]
    backbones = [*stated["backbones"], *stated.get("concatenations", [])]
    heads = [*stated["heads"], *stated.get("averages", {})]

    def place(known: Sequence[str], name: str) -> int:
        return known.index(name) if name in known else len(known)  # averages come last

    return sorted(
        records,
        key=lambda r: (
            place(backbones, r["backbone"]),
            place(stated["preprocessing"], r["preprocessing"]),
            place(heads, r["head"]),
            r["seed"],
        ),
    )


def _read_head(file: Path) -> dict[str, Any]:
    remedy = ". Remove it and run train again."
    return _read_object(file, "configuration", "the record of a trained head", str(file), remedy)


def write_predictions(file: Path, predictions: pd.DataFrame) -> None:
    """Write one configuration's predictions, whole or not at all."""
    table = pa.Table.from_pandas(predictions, PREDICTION_SCHEMA, preserve_index=False)
    with replacing(file) as beside:
        pq.write_table(table, beside, compression="zstd")


def read_held_out(run: Path, records: Sequence[dict[str, Any]]) -> dict[str, pd.DataFrame]:
    """Return the predictions of each configuration that was cross-validated, by its name.

    Args:
        run: the run folder.
        records: what ``trained`` returns.

    Raises:
        UserError: a file is damaged.
    """
    names = dict.fromkeys(record["configuration"] for record in records)
    return {
        name: read_predictions(run, cross_name(name))
        for name in names
        if predictions_file(run, cross_name(name)).exists()
    }


def read_predictions(run: Path, name: str) -> pd.DataFrame:
    """Return the predictions of one configuration and seed.

    Raises:
        UserError: the file is missing or damaged.
    """
    file = predictions_file(run, name)
    try:
        return pq.read_table(file, schema=PREDICTION_SCHEMA).to_pandas()
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"Expected the predictions of {name}. Received: {file} ({error})"
        ) from error
