"""The stages of a run, each joining the rooms that it needs: extraction, training, report."""

from __future__ import annotations

import dataclasses
import itertools
import logging
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from cxr_spark.config import Experiment
from cxr_spark.errors import UserError
from cxr_spark.evaluation.rules import Rules
from cxr_spark.extraction.lock import locked
from cxr_spark.extraction.store import ExtractionRecord
from cxr_spark.files import check_writable, without_nan, write_json
from cxr_spark.paths import AnyPath, as_path, check_remote_folder
from cxr_spark.training.head_table import TABLE, head_table
from cxr_spark.training.run_folder import (
    AVERAGE,
    Configuration,
    check_run,
    check_same_features,
    head_name,
    read_experiment,
    read_held_out,
    read_predictions,
    trained,
    update_experiment,
)

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from cxr_spark.evaluation.results import RunResults
    from cxr_spark.extraction.load import LoadedBackbone
    from cxr_spark.report.page import Shown

    Backbones = Callable[[], Sequence[LoadedBackbone]]

log = logging.getLogger(__name__)


def run_extract(experiment: Experiment) -> None:
    """Extract the features of the experiment's images into its features folder."""
    images, features = _required(experiment, "images"), as_path(_required(experiment, "features"))
    _check_images(experiment, images)
    with _starting(experiment, features, experiment.feature_maps) as (spark, backbones):
        _extract(spark, experiment, images, features, backbones, experiment.feature_maps)


def run_train(
    experiment: Experiment,
    *,
    command: str = "",
    extraction_seconds: float | None = None,
    spark: SparkSession | None = None,
) -> None:
    """Train the experiment's heads on its features folder and write results.csv and leaks.csv.

    Args:
        experiment: what to train, and where.
        command: that asked for it, to be kept in the run folder; empty where none did.
        extraction_seconds: what it took to extract the features, to be kept beside.
        spark: a session that is open already, for ``distribute_heads``.
    """
    from cxr_spark.averages import write_averages
    from cxr_spark.leak_check import check_leaks
    from cxr_spark.training.job import train

    features, run = as_path(_required(experiment, "features")), Path(_required(experiment, "run"))
    if not isinstance(features, Path):
        check_remote_folder(features, "features")
    check_run(run, experiment)
    with _tracking(run, experiment.mlflow, experiment.name), _alone(run):
        with _keeping(run, command, extraction_seconds):
            trained_on = train(experiment, features, run, _heads_session(experiment, spark))
        check_leaks(run, features, trained_on)
        write_averages(run, experiment)
        write_results(run)


@contextmanager
def _alone(run: Path) -> Iterator[None]:
    """Hold a run folder for this process; where nothing comes of it, no folder is left.

    Raises:
        UserError: another process holds it.
    """
    created = not run.exists()
    run.mkdir(parents=True, exist_ok=True)
    try:
        with locked(run, "run"):
            yield
    finally:
        if created and not any(run.iterdir()):
            run.rmdir()


def _heads_session(
    experiment: Experiment, spark: SparkSession | None
) -> Callable[[], AbstractContextManager[SparkSession | None]]:
    """Return what opens the session on whose executors heads are trained; none on the driver."""
    if not experiment.distribute_heads:
        return nullcontext
    if spark is not None:
        return lambda: nullcontext(spark)
    from cxr_spark.spark import open_session

    return lambda: open_session(f"cxr_spark heads {experiment.name}")


@contextmanager
def _keeping(run: Path, command: str, extraction_seconds: float | None) -> Iterator[None]:
    """Add a command and its seconds to experiment.json, however the training it asks for ends.

    Where it is refused nothing is added: the run folder may be another experiment's.
    """
    entry: dict[str, Any] = {
        "command": command,
        "began": datetime.now(UTC).isoformat(" ", "seconds"),
        "extraction_seconds": extraction_seconds,
    }
    began, refused = time.monotonic(), False
    try:
        yield
    except UserError:
        refused = True
        raise
    finally:
        if not refused and (run / "experiment.json").exists():
            entry["training_seconds"] = round(time.monotonic() - began, 3)
            kept = read_experiment(run).get("commands", [])
            update_experiment(run, commands=[*kept, entry])


@contextmanager
def _tracking(run: Path, mlflow: str | None, name: str) -> Iterator[None]:
    """Refuse a wrong address of MLflow before the block starts, and log the run folder after it."""
    if mlflow is None:
        yield
        return
    from cxr_spark.tracking.store import check_tracking, log_run

    check_tracking(mlflow, name)
    yield
    log_run(run, mlflow)


def run_report(run: Path, mlflow: str | None = None) -> None:
    """Write results.csv and report.html again, from what the run folder holds.

    Args:
        run: the run folder.
        mlflow: where to log it, as --mlflow gives it.
    """
    with _tracking(run, mlflow, read_experiment(run)["experiment"]["name"]):
        _report(run)


def _report(run: Path) -> None:
    content = read_experiment(run)
    check_writable(run, "run")
    with _alone(run):
        _write_report(run, content)


def _write_report(run: Path, content: dict[str, Any]) -> None:
    from cxr_spark.evaluation.results import roc_points
    from cxr_spark.evaluation.select import SELECTION_RULE
    from cxr_spark.leak_check import read_leaks
    from cxr_spark.report.model_card import write_model_card
    from cxr_spark.report.page import RunMeasures, write_report

    found, predictions = write_results(run, show=False)
    records = trained(run)
    rules, positive = _rules(content), content["task"]["positive"]
    counts = predictions[0].groupby(["label", "split"]).size().unstack(fill_value=0)
    counts.index = pd.Index(content["task"]["classes"])
    measures = RunMeasures(
        experiment=content,
        results=found.results,
        summary=found.summary,
        rules={**dataclasses.asdict(rules), "selection": SELECTION_RULE},
        histories=[record["history"] for record in records],
        roc_curves=[]
        if positive is None
        else [roc_points(table, positive) for table in predictions],
        class_counts=counts,
        shown=_shown(run, found, predictions, rules, content),
        leaks=read_leaks(run),
        samples=_samples(run, predictions[0], content),
        published=_published(found, content),
        searches=_searches(records),
        not_trained=_not_trained(content["experiment"], records),
        sources=_sources(records),
    )
    page = write_report(run, measures)
    takes = next(
        record["takes"]
        for record in records
        if record["configuration"] == measures.shown.row["configuration"]
    )
    card = write_model_card(run, measures, takes=takes)
    log.info("report: %s, %s", page, card.name)


def _shown(
    run: Path,
    found: RunResults,
    predictions: Sequence[pd.DataFrame],
    rules: Rules,
    content: dict[str, Any],
) -> Shown:
    """Look closely at the first seed of the selected configuration, or of the highest test AUC."""
    from cxr_spark.dataset.root import open_root
    from cxr_spark.evaluation.bands import N_RESAMPLES
    from cxr_spark.evaluation.detail import look_closely
    from cxr_spark.report.page import Shown
    from cxr_spark.report.thumbnails import thumbnail

    best = found.summary.loc[found.summary["test_auc"].idxmax(), "configuration"]
    name = found.verdict.selected or best
    index = next(k for k, row in enumerate(found.rows) if row["configuration"] == name)
    detail = look_closely(predictions[index], rules, found.rows[index].get("threshold"))
    classes = content["task"]["classes"]
    read = open_root(_images_of(run, content))
    return Shown(
        row=found.rows[index],
        curves=[(classes[c.label], c.roc, c.precision_recall) for c in detail.curves],
        n_drawings=N_RESAMPLES,
        reliability=(detail.reliability.score, detail.reliability.share),
        wrong=[
            {
                "image_id": row["image_id"],
                "truth": classes[row["label"]],
                "called": classes[row["called"]],
                "score": row["score"],
                "picture": thumbnail(read, row["image_id"]),
            }
            for row in detail.wrong.to_dict("records")
        ],
    )


def _images_of(run: Path, content: dict[str, Any]) -> str:
    return str(content["experiment"].get("images") or run / "phantoms")


def _samples(run: Path, predictions: pd.DataFrame, content: dict[str, Any]) -> list[dict[str, Any]]:
    """Return some training images of each class that are still there, always the same ones."""
    from cxr_spark.dataset.adapters import UnrecognisedPath, make_adapter
    from cxr_spark.dataset.root import open_root
    from cxr_spark.report.thumbnails import choose_samples, thumbnail

    dataset, read = content["experiment"]["dataset"], open_root(_images_of(run, content))
    parse = make_adapter(dataset["adapter"], dataset.get("patient_pattern"))
    train = predictions[predictions["split"] == "train"]
    samples = []
    for label, truth in enumerate(content["task"]["classes"]):
        for image_id in choose_samples(train["image_id"][train["label"] == label]):
            finding = truth
            with suppress(UnrecognisedPath):  # features may be of another layout than train is told
                finding = parse(image_id).finding
            if picture := thumbnail(read, image_id):
                sample = {"truth": truth, "finding": finding, "picture": picture}
                samples.append({"image_id": image_id, **sample})
    return samples


def _not_trained(stated: dict[str, Any], records: Sequence[dict[str, Any]]) -> list[str]:
    """Return the configurations that a run was asked for, averages too, and does not hold."""
    table = {**TABLE, **stated.get("custom_heads", {})}
    takes = {
        head: row["takes"] if isinstance(row, dict) else row.takes for head, row in table.items()
    }
    asked = [
        Configuration(backbone, preprocessing, head).name
        for backbone in [*stated["backbones"], *stated.get("concatenations", [])]
        if {*backbone.split("+")} <= {*stated["backbones"]}  # or --backbones left it out
        for preprocessing in stated["preprocessing"]
        for head in stated["heads"]
        if "+" not in backbone or takes.get(head) == "pooled"
    ]
    there = {record["configuration"] for record in records}
    averages = {record["head"] for record in records if record["backbone"] == AVERAGE}
    lacking = [f"{AVERAGE} {name}" for name in stated.get("averages", {}) if name not in averages]
    return [name for name in asked if name not in there] + lacking


def _sources(records: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """Return whose the trained heads are, and which; none of those of an experiment's own."""
    found: dict[str, list[str]] = {}
    for head in dict.fromkeys(record["head"] for record in records):
        if head in TABLE and TABLE[head].source:
            found.setdefault(TABLE[head].source, []).append(head)
    return found


def _searches(records: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what was searched for each tuned configuration, once for all of its seeds."""
    found = {r["configuration"]: r["search"] for r in records if "search" in r}
    return [{"configuration": name, **search} for name, search in found.items()]


def _published(found: RunResults, content: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what others found on the same test images; nothing where the run's are others."""
    from cxr_spark.evaluation.paper import N_OFFICIAL_TEST, compare_published

    summary = found.summary.set_index("configuration")
    row = summary.loc[found.verdict.selected or summary["test_auc"].idxmax()]
    alike = _is_papers(content) and not content["demonstration"]
    if not alike or row["n_test"] != N_OFFICIAL_TEST or pd.isna(row["test_auc_low"]):
        return []
    return compare_published(row["test_auc_low"], row["test_auc_high"])


def run_grid(experiment: Experiment, *, command: str = "") -> None:
    """Extract, train and report in one: features go to the run folder unless a folder is given.

    All that can be known to be wrong is found before anything is written.

    Args:
        experiment: what to extract and train, and where.
        command: as for ``run_train``.
    """
    run = Path(_required(experiment, "run"))
    check_run(run, experiment)
    with _tracking(run, experiment.mlflow, experiment.name):
        _grid(experiment.model_copy(update={"mlflow": None}), run, command)


def _grid(experiment: Experiment, run: Path, command: str) -> None:
    features = as_path(experiment.features) if experiment.features else run / "features"
    maps = experiment.feature_maps or any(
        head_table(experiment)[head].takes == "feature_map" for head in experiment.heads
    )
    _check_grid_images(experiment)
    with ExitStack() as stack:
        spark, backbones = stack.enter_context(_starting(experiment, features, maps))
        # Executors are still to settle a lower precision, and with it the fingerprint.
        if not experiment.overwrite and experiment.precision == "float32":
            check_same_features(run, {backbone.identity.fingerprint for backbone in backbones()})
        images = experiment.images or _draw_phantoms(experiment, run)
        began = time.monotonic()
        records = _extract(spark, experiment, images, features, backbones, maps)
        extraction_seconds = round(time.monotonic() - began, 3)
        fingerprints = [record.fingerprint for record in records]
        extracted = experiment.model_copy(
            update={"features": str(features), "extraction": fingerprints}
        )
        if not experiment.distribute_heads:
            stack.close()  # what follows needs no executor
        run_train(extracted, command=command, extraction_seconds=extraction_seconds, spark=spark)
    _report(run)


def _draw_phantoms(experiment: Experiment, run: Path) -> str:
    from cxr_spark.dataset.phantoms import draw_phantoms

    assert experiment.phantoms is not None, "_check_grid_images refused it"
    draw_phantoms(run / "phantoms", **experiment.phantoms.model_dump())
    return str(run / "phantoms")


def _check_images(experiment: Experiment, images: str) -> None:
    from cxr_spark.dataset.manifest import check_images

    check_images(images, experiment.dataset.adapter, experiment.dataset.patient_pattern)


def _check_grid_images(experiment: Experiment) -> None:
    """Refuse images whose classes and splits cannot be trained on, before any is extracted.

    The driver holds every path for that moment, as it holds every image's key when it trains.
    """
    from cxr_spark.dataset.manifest import read_paths
    from cxr_spark.dataset.phantoms import name_phantoms
    from cxr_spark.dataset.root import list_images
    from cxr_spark.training.assign import assign
    from cxr_spark.training.reader import ImageKeys

    if experiment.images is not None:
        _check_images(experiment, experiment.images)
        image_ids = [image.image_id for image in list_images(experiment.images)]
    elif experiment.phantoms is not None:
        phantoms = experiment.phantoms
        image_ids = sorted(name_phantoms(phantoms.n_images, phantoms.seed))
    else:
        raise UserError("Expected --images, or images: in the YAML file. Received: neither")
    dataset = experiment.dataset
    found = read_paths(image_ids, dataset.adapter, dataset.patient_pattern, limit=experiment.limit)
    columns = (
        [image_id for image_id, _ in found],
        [facts.finding for _, facts in found],
        [facts.patient_id for _, facts in found],
        [facts.official_split for _, facts in found],
    )
    assign(experiment, ImageKeys(*(np.array(column, object) for column in columns)))


@contextmanager
def _starting(
    experiment: Experiment, features: AnyPath, feature_maps: bool
) -> Iterator[tuple[SparkSession, Backbones]]:
    """Yield the session, and a function that waits for the backbones, which load while it opens."""
    from cxr_spark.backbones import find_weights
    from cxr_spark.extraction.load import load_backbones
    from cxr_spark.filesystems import is_remote
    from cxr_spark.memory import worker_mb
    from cxr_spark.spark import open_session

    if isinstance(features, Path):
        check_writable(features, "features")
    else:
        check_remote_folder(features, "features")
    if experiment.weights not in ("imagenet", "random"):
        for name in experiment.backbones:  # a wrong folder is told before anything starts
            find_weights(name, experiment.weights)
    with (
        tempfile.TemporaryDirectory(prefix="cxr_spark-graphs-") as folder,
        ThreadPoolExecutor(1) as pool,
    ):
        loading: list[Future[list[LoadedBackbone]]] = []
        stopped = Event()

        def load() -> list[LoadedBackbone]:
            backbones = load_backbones(experiment, Path(folder), feature_maps=feature_maps)
            return list(itertools.takewhile(lambda _: not stopped.is_set(), backbones))

        name = f"cxr_spark extract {experiment.name}"
        graphs = experiment.backbones * len(experiment.preprocessing)
        image_size, remote = experiment.image_size, is_remote(experiment.images or "")
        try:
            with open_session(
                name,
                meanwhile=lambda: loading.append(pool.submit(load)),
                worker_mb=lambda images: worker_mb(
                    graphs, image_size, images_at_once=images, remote=remote
                ),
            ) as spark:
                yield spark, loading[0].result
        finally:
            stopped.set()  # or an error, or Ctrl-C, would wait for all that are still to load


def _extract(
    spark: SparkSession,
    experiment: Experiment,
    images: str,
    features: AnyPath,
    backbones: Backbones,
    feature_maps: bool,
) -> list[ExtractionRecord]:
    from cxr_spark.dataset.phantoms import NOTICE, holds_phantoms
    from cxr_spark.extraction.job import ExtractionRequest, extract

    reasons = {
        NOTICE: holds_phantoms(images),
        "seeded random weights, untrained backbones": experiment.weights == "random",
    }
    demonstration = "; ".join(reason for reason, holds in reasons.items() if holds)
    request = ExtractionRequest(
        experiment=experiment,
        images=images,
        features=features,
        feature_maps=feature_maps,
        demonstration=f"Demonstration: {demonstration}." if demonstration else "",
    )
    return extract(spark, request, backbones, overwrite=experiment.overwrite)


def write_results(run: Path, *, show: bool = True) -> tuple[RunResults, Sequence[pd.DataFrame]]:
    """Compute results.csv and results.json of a run folder from its predictions.

    Returns:
        What was computed, and the predictions of each configuration and seed.
    """
    from cxr_spark.evaluation.results import evaluate_run
    from cxr_spark.evaluation.select import SELECTION_RULE

    records = trained(run)
    predictions = [
        read_predictions(run, head_name(record["configuration"], record["seed"]))
        for record in records
    ]
    content = read_experiment(run)
    task, rules = content["task"], _rules(content)
    held_out = read_held_out(run, records)
    # A selection among some of them would be none.
    pooled = {r["configuration"]: None for r in records if r["takes"] == "pooled"}
    lacking = [name for name in pooled if held_out and name not in held_out]
    if lacking:
        log.warning(
            "no configuration is selected: %s %s not cross-validated yet; run train with all heads",
            ", ".join(lacking), "is" if len(lacking) == 1 else "are",
        )  # fmt: skip
    if not_trained := _not_trained(content["experiment"], records):
        log.warning(
            "asked for and not trained: %d configurations, %s%s", len(not_trained),
            ", ".join(not_trained[:6]), " and others" if len(not_trained) > 6 else "",
        )  # fmt: skip
    found = evaluate_run(
        predictions, records, held_out, rules, task["classes"], content["demonstration"],
        as_paper=_is_papers(content), lacking=lacking,
    )  # fmt: skip
    verdict = found.verdict
    stored = {
        "task": task,
        "rules": dataclasses.asdict(rules),
        "selection_rule": SELECTION_RULE,
        "selected": verdict.selected,
        "not_trained": not_trained,
        "comparisons": verdict.comparisons.to_dict("records"),
        "configurations": found.summary.to_dict("records"),
        "rows": found.rows,
    }
    write_json(run / "results.json", without_nan(stored))
    beside = run / "_results.csv"
    found.results.to_csv(beside, index=False, float_format="%.6f")
    beside.replace(run / "results.csv")
    if show:
        _print_table(found, content["demonstration"])
    return found, predictions


def _rules(content: dict[str, Any]) -> Rules:
    return Rules(content["task"]["positive"], **content["experiment"].get("evaluation", {}))


def _is_papers(content: dict[str, Any]) -> bool:
    """Whether a run's task and images are the seed paper's: no other folder's, and no phantoms."""
    from cxr_spark.dataset.phantoms import NOTICE

    return (
        content["task"]["name"] == "pneumonia"
        and content["experiment"]["dataset"]["adapter"] == "kermany"
        and NOTICE not in content["demonstration"]
    )


def _print_table(found: RunResults, demonstration: str) -> None:
    columns = {
        "configuration": "configuration", "n_seeds": "seeds", "cv_auc": "CV AUC",
        "val_auc": "val AUC", "test_auc": "test AUC", "test_auc_low": "low",
        "test_auc_high": "high", "p_holm": "p, Holm", "test_keras_auc": "Keras AUC",
        "paper_test_keras_auc": "paper's",
    }  # fmt: skip
    ordered = found.summary.sort_values("test_auc", ascending=False, kind="stable")
    table = ordered[list(columns)].rename(columns=columns).dropna(axis="columns", how="all")
    print(f"\n{demonstration}\n" if demonstration else "")
    print(table.to_string(index=False, float_format="%.3f", na_rep="-"))
    if found.verdict.selected is not None:
        print(
            f"Selected by cross-validation on training images: {found.verdict.selected}. "
            "p, Holm: of the others' test AUC being the same."
        )
    print("Not for clinical use.\n", flush=True)


def _required(experiment: Experiment, field: str) -> str:
    value = getattr(experiment, field)
    if value is None:
        raise UserError(f"Expected --{field}, or {field}: in the YAML file. Received: neither")
    return str(value)
