"""What MLflow is told of a run folder: parameters, measures, tags and files. Knows no MLflow."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cxr_spark.errors import UserError
from cxr_spark.training.run_folder import head_name, read_experiment, trained

log = logging.getLogger(__name__)

# Parameters are what cannot change: MLflow refuses another value. What may, as the heads that have
# joined and how scores are measured, are tags.
_SECTIONS = ("task", "positive", "standardise", "dataset", "split", "phantoms")
_MODELS = (".keras", ".skops")
_RESULTS = ("experiment.json", "results.csv", "results.json", "leaks.csv", "report.html",
            "model_card.md")  # fmt: skip
# Ours of the history is Keras' metric, which is not the ROC AUC: see evaluation/.
_EPOCHS = {"auc": "keras_auc", "val_auc": "val_keras_auc"}
NOTE = "A comparison of pretrained backbones and heads on chest X-rays. Not for clinical use."


@dataclass(frozen=True)
class Entry:
    """One MLflow run: the experiment's, or that of a configuration and seed.

    Attributes:
        key: which of the run folder it is, empty for the experiment's.
        name: as MLflow shows it.
        began, ended: in milliseconds since 1970.
        params, tags: by name.
        metrics: measures by name, None where there is none.
        history: measures of every epoch, by name.
        files: the files of each artifact folder.
        texts: artifacts that are no files of the run folder, by path.
    """

    key: str
    name: str
    began: int
    ended: int
    params: dict[str, str]
    tags: dict[str, str]
    metrics: dict[str, float | None]
    history: dict[str, list[float]] = field(default_factory=dict)
    files: dict[str, list[Path]] = field(default_factory=dict)
    texts: dict[str, str] = field(default_factory=dict)


def read_entries(run: Path) -> list[Entry]:
    """Return the entries of a run folder: the experiment's, then each configuration and seed's.

    Predictions, which tell images and patients one by one, are none of them.

    Raises:
        UserError: the folder holds no run, or one without results.
    """
    content, records, results = read_experiment(run), trained(run), _read_results(run)
    rows = {(row["configuration"], row["seed"]): row for row in results["rows"]}
    heads = [
        _head_entry(run, content, record, row)
        for record in records
        if (row := rows.get((record["configuration"], record["seed"]))) is not None
    ]
    return [_run_entry(run, content, results, heads), *heads]


def _read_results(run: Path) -> dict[str, Any]:
    try:
        results: dict[str, Any] = json.loads((run / "results.json").read_text(encoding="utf-8"))
        [(row["configuration"], row["seed"]) for row in results["rows"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"Expected {run} to hold results.json. Received: {error}. Run jobs/report.py first."
        ) from error
    return results


def _run_entry(
    run: Path, content: dict[str, Any], results: dict[str, Any], heads: Sequence[Entry]
) -> Entry:
    stated, images = content["experiment"], content.get("images", {})
    selected = results.get("selected")
    configurations = results.get("configurations", [])
    shown: dict[str, Any] = next((c for c in configurations if c["configuration"] == selected), {})
    extractions = content.get("extractions", [])
    params = {
        **_shared_params(content),
        "backbones": _text(stated["backbones"]),
        "preprocessing": _text(stated["preprocessing"]),
        "extraction": _text([e["fingerprint"] for e in extractions]),
        "weights": _text(list(dict.fromkeys(e["weights"] for e in extractions))),
        **_training_params(stated, {}),
    }
    tags = {
        **_shared_tags(content),
        "heads": _text(stated["heads"]),
        "seeds": _text(stated["seeds"]),
        "selected": selected or "none",
    }
    measured = {name for configuration in configurations for name in _measures(configuration)}
    counts = {name: images.get(name) for name in ("n_images", "n_rows", "n_errors")}
    figures = sorted((run / "figures").glob("*.svg"))
    return Entry(
        key="",
        name=run.resolve().name,
        began=min((head.began for head in heads), default=0),
        ended=max((head.ended for head in heads), default=0),
        params=params,
        tags=tags,
        # Of the selected configuration, over its seeds, and of none where none is selected: the
        # highest of many test AUCs would flatter.
        metrics={**dict.fromkeys(sorted(measured)), **_measures(shown), **counts},
        files={
            "": _inside(run, [run / name for name in _RESULTS]),
            "figures": _inside(run, figures),
        },
    )


def _head_entry(
    run: Path, content: dict[str, Any], record: dict[str, Any], row: dict[str, Any]
) -> Entry:
    name = head_name(record["configuration"], record["seed"])
    stored, history = run / "heads" / f"{name}.json", record.get("history", {})
    stated = content["experiment"]
    extraction: dict[str, Any] = next(
        (e for e in content.get("extractions", []) if e["fingerprint"] == record["extraction"]), {}
    )
    identity = extraction.get("identity", {})
    own = {
        **stated.get("custom_heads", {}).get(record["head"], {}),
        **record.get("search", {}).get("parameters", {}),
    }
    ended = int(stored.stat().st_mtime * 1000)
    facts = {
        **{
            key: record[key]
            for key in (
                "configuration", "backbone", "preprocessing", "head", "takes", "seed", "weights",
                "extraction",
            )
        },
        **{key: identity[key] for key in ("weights_digest", "precision") if key in identity},
        **{f"head.{key}": value for key, value in own.items()
           if key != "takes" and key not in stated["training"]},
    }  # fmt: skip
    trained_by_epochs = _training_params(stated, own) if history else {}
    models = [stored.with_name(f"{name}{ending}") for ending in _MODELS]
    return Entry(
        key=name,
        name=name,
        began=ended - round(1000 * record["train_seconds"]),
        ended=ended,
        params={**_shared_params(content), **_as_params(facts), **trained_by_epochs},
        tags={**_shared_tags(content), "selected": _text(bool(row.get("selected")))},
        metrics=_measures(row) | {"epochs": len(next(iter(history.values()), [])) or None},
        history={f"epoch/{_EPOCHS.get(key, key)}": values for key, values in history.items()},
        files={"model": _inside(run, [*models, stored])},
        texts={"measures.json": json.dumps(row, indent=2, sort_keys=True) + "\n"},
    )


def _shared_params(content: dict[str, Any]) -> dict[str, str]:
    """Return what is the same for all configurations of a run."""
    stated, images = content["experiment"], content.get("images", {})
    return _as_params(
        {
            **{name: stated.get(name) for name in _SECTIONS},
            "image_size": "x".join(str(side) for side in stated["image_size"]),
            "images": {name: images.get(name) for name in ("listing_digest", "limit")},
        }
    )


def _training_params(stated: dict[str, Any], own: Mapping[str, Any]) -> dict[str, str]:
    """Return how networks are trained: as the experiment says, where the head does not."""
    settings = {k: v for k, v in stated.get("training", {}).items() if k != "memory_gb"}
    of_head = {k: own[k] for k in settings if own.get(k) is not None}
    return _as_params({"training": {**settings, **of_head}})


def _shared_tags(content: dict[str, Any]) -> dict[str, str]:
    evaluation = content["experiment"].get("evaluation", {})
    return {
        "cxr_spark.version": content.get("versions", {}).get("cxr_spark", "unknown"),
        "mlflow.source.name": "cxr_spark",
        **({"demonstration": d} if (d := content.get("demonstration", "")) else {}),
        **{f"evaluation.{name}": _text(value) for name, value in sorted(evaluation.items())},
    }


def _as_params(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return sections flat, names joined by dots, without what was not set."""
    flat: dict[str, str] = {}
    for name, value in facts.items():
        if isinstance(value, dict):
            flat |= {f"{name}.{key}": text for key, text in _as_params(value).items()}
        elif value is not None:
            flat[name] = _text(value)
    return flat


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return ",".join(_text(item) for item in value)
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return str(value)


def _measures(row: Mapping[str, Any]) -> dict[str, float | None]:
    """Return the numbers of a row of results, None where one could not be measured."""
    numbers = {
        name: value
        for name, value in row.items()
        if name != "seed" and not isinstance(value, bool | str | list | dict)
    }
    return {
        name: None if value is None or not math.isfinite(value) else float(value)
        for name, value in numbers.items()
    }


def _inside(run: Path, files: Iterable[Path]) -> list[Path]:
    """Return the files that there are, without links out of the run folder."""
    found = [file for file in files if file.is_file()]
    kept = [file for file in found if file.resolve().is_relative_to(run.resolve())]
    for file in found:
        if file not in kept:
            log.warning("mlflow: %s leads out of the run folder and is not logged", file)
    return kept
