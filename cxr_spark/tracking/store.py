"""Writes the entries of a run folder to MLflow, new ones as new runs, known ones to their own."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import os
import re
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxr_spark.errors import RunFailed, UserError
from cxr_spark.files import check_writable, write_json
from cxr_spark.tracking.address import Address, read_address
from cxr_spark.tracking.entries import NOTE, Entry, read_entries
from cxr_spark.training.run_folder import read_experiment

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

log = logging.getLogger(__name__)

KEY_FILE = "mlflow.json"
RUN_KEY, ENTRY, DIGEST = "cxr_spark.run_key", "cxr_spark.entry", "cxr_spark.digest"
# What MLflow takes at once.
_PER_BATCH = {"metrics": 1000, "params": 100, "tags": 100}
_MAX_TEXT = 5000
_EVERY_S = 10.0
# MLflow would try seven times over several minutes, report its own use to its makers and print on
# standard output. What the environment says wins.
_SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "1",
}
_TO_CHECK = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
_TO_LOG = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "60"}


def check_tracking(given: str, experiment_name: str) -> None:
    """Find out whether MLflow can be reached, before anything starts; write nothing.

    Args:
        given: the value of --mlflow.
        experiment_name: the name of the cxr_spark experiment.

    Raises:
        UserError: it is no address, a package is missing, or nothing of MLflow answers there.
    """
    address = read_address(given)
    if address.sqlite_file is not None:
        check_writable(address.sqlite_file.parent, "mlflow")
    with _settings(address, _TO_CHECK):
        _import_what_is_needed(address)
        if address.sqlite_file is not None and not address.sqlite_file.exists():
            return
        name = _experiment_name(experiment_name)
        try:
            experiment = _client(address).get_experiment_by_name(name)
        except Exception as error:  # of MLflow, requests, SQLAlchemy or a driver of a database
            raise UserError(
                f"Expected MLflow to answer at --mlflow. Received: {address.shown} "
                f"({_reason(error, address)})"
            ) from error
    if experiment is not None and experiment.lifecycle_stage != "active":
        raise UserError(
            f"Expected an active experiment of MLflow. Received: {name}, which is deleted at "
            f"{address.shown}. Restore it, or set MLFLOW_EXPERIMENT_NAME to another."
        )


def log_run(run: Path, given: str) -> None:
    """Log a finished run folder to MLflow; again, it updates the same runs.

    Args:
        run: the run folder.
        given: the value of --mlflow, which ``check_tracking`` has let pass.

    Raises:
        RunFailed: MLflow does not take it; the run folder is complete, and the text says how to
            log it later.
    """
    address, entries = read_address(given), read_entries(run)
    name, key = _experiment_name(read_experiment(run)["experiment"]["name"]), _run_key(run)
    with _settings(address, _TO_LOG):
        try:
            _import_what_is_needed(address)
            client = _client(address)
            experiment_id = _experiment_id(client, name, address)
            n_new, parent = _log_entries(client, experiment_id, entries, key)
        except Exception as error:  # as above; what was computed is in the run folder
            raise RunFailed(
                f"The run in {run} is complete, but could not be logged to {address.shown} "
                f"({_reason(error, address)}). To log it: jobs/report.py --run {run} --mlflow URI"
            ) from error
    page = f"/#/experiments/{experiment_id}/runs/{parent}" if address.is_server else ""
    log.info(
        "mlflow: %d runs of experiment %s, %d of them new: %s%s",
        len(entries), name, n_new, address.shown, page,
    )  # fmt: skip


def _experiment_name(name: str) -> str:
    return os.environ.get("MLFLOW_EXPERIMENT_NAME") or name


def _run_key(run: Path) -> str:
    """Return what marks this run folder's runs in MLflow; copies and moved folders keep it."""
    file = run / KEY_FILE
    if not file.exists():
        write_json(file, {"run_key": uuid.uuid4().hex})
    try:
        key = str(json.loads(file.read_text(encoding="utf-8"))["run_key"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        key = str(error)
    if re.fullmatch("[0-9a-f]{32}", key) is None:
        raise UserError(
            f"Expected the run_key of a run in {file}. Received: {key[:80]}. "
            "Remove the file, and the run is logged as a new one."
        )
    return key


@contextmanager
def _settings(address: Address, patience: Mapping[str, str]) -> Iterator[None]:
    """Have MLflow's settings in the environment, where it looks for them, and put all back."""
    wanted = {k: v for k, v in {**_SETTINGS, **patience}.items() if k not in os.environ}
    if address.is_server and address.user is not None:
        wanted["MLFLOW_TRACKING_USERNAME"] = address.user
        wanted["MLFLOW_TRACKING_PASSWORD"] = address.password or ""
    before = {name: os.environ.get(name) for name in wanted}
    os.environ.update(wanted)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def _import_what_is_needed(address: Address) -> None:
    try:
        import mlflow  # noqa: F401

        if address.is_database:
            import alembic  # noqa: F401
            import sqlalchemy  # noqa: F401
    except ImportError as error:
        package = "mlflow" if error.name in (None, "mlflow") else error.name
        raise UserError(
            f"Expected the package {package} for --mlflow. Received: {error}. "
            "Run pip install 'cxr_spark[mlflow]'."
        ) from error


def _client(address: Address) -> MlflowClient:
    from mlflow import MlflowClient

    file = address.sqlite_file
    if address.is_database and (file is None or file.exists()):
        import sqlalchemy

        # MLflow itself would try for two minutes.
        engine = sqlalchemy.create_engine(address.uri)
        try:
            sqlalchemy.inspect(engine).get_table_names()
        finally:
            engine.dispose()
    return MlflowClient(address.uri, address.uri)


def _experiment_id(client: MlflowClient, name: str, address: Address) -> str:
    experiment = client.get_experiment_by_name(name)
    if experiment is not None:
        return str(experiment.experiment_id)
    location = None
    if address.sqlite_file is not None:
        # Beside the database: MLflow would take the folder in which the job was started.
        place = re.sub(r"[^A-Za-z0-9_.-]", "_", name).strip(".") or "_"
        location = (address.sqlite_file.parent / "mlruns" / place).as_uri()
    return str(client.create_experiment(name, artifact_location=location))


def _log_entries(
    client: MlflowClient, experiment_id: str, entries: Sequence[Entry], key: str
) -> tuple[int, str]:
    """Log all entries; return how many are new, and the id of the experiment's run."""
    known = _known_runs(client, experiment_id, key)
    parent, *heads = entries
    own = {RUN_KEY: key, ENTRY: parent.key}
    parent_run = known.get(parent.key) or _create(client, experiment_id, parent, own)
    parent_id = str(parent_run.info.run_id)
    began = told = time.monotonic()
    for n_done, head in enumerate(heads):
        if n_done and time.monotonic() - told > _EVERY_S:
            told = time.monotonic()
            left = (told - began) / n_done * (len(heads) - n_done)
            log.info("mlflow: %d of %d heads, about %.0f s left", n_done, len(heads), left)
        # The experiment's run is a new one where the former was deleted.
        own = {RUN_KEY: key, ENTRY: head.key, "mlflow.parentRunId": parent_id}
        run = known.get(head.key) or _create(client, experiment_id, head, own)
        _update(client, run, head, own)
        _finish(client, run, head)
    _update(client, parent_run, parent, {})
    new = [entry for entry in entries if entry.key not in known]
    _finish(client, parent_run, parent, anew=bool(new))
    return len(new), parent_id


def _known_runs(client: MlflowClient, experiment_id: str, key: str) -> dict[str, Run]:
    """Return the runs of this run folder that MLflow has, by entry; the first made where two are.

    A run that was deleted there is none of them.
    """
    known: dict[str, Run] = {}
    token = None
    while True:
        page = client.search_runs(
            [experiment_id], f"tags.`{RUN_KEY}` = '{key}'", order_by=["attributes.start_time ASC"],
            page_token=token,
        )  # fmt: skip
        for run in page:
            known.setdefault(run.data.tags.get(ENTRY, ""), run)
        token = page.token
        if not token:
            return known


def _create(client: MlflowClient, experiment_id: str, entry: Entry, own: dict[str, str]) -> Run:
    demonstration = entry.tags.get("demonstration")
    note = f"**{demonstration}** {NOTE}" if demonstration else NOTE
    # The note is the user's to change from here on.
    tags = {**own, "mlflow.note.content": note}
    return client.create_run(experiment_id, start_time=entry.began, tags=tags, run_name=entry.name)


def _update(client: MlflowClient, run: Run, entry: Entry, own: dict[str, str]) -> None:
    """Log what MLflow does not have of an entry yet, or has otherwise."""
    from mlflow.entities import Metric, Param, RunTag

    run_id, stored = run.info.run_id, run.data
    params = {name: value[:_MAX_TEXT] for name, value in entry.params.items()}
    for name in sorted(params.keys() & stored.params.keys()):
        if stored.params[name] != params[name]:
            log.warning(
                "mlflow: %s of %s stays %s, where the run folder says %s: MLflow changes no "
                "parameter", name, entry.name, stored.params[name], params[name],
            )  # fmt: skip
    now, at = int(time.time() * 1000), run.info.start_time
    measures = {
        name: math.nan if value is None else value
        for name, value in entry.metrics.items()
        if value is not None or name in stored.metrics
    }
    metrics = [
        Metric(name, value, now, 0)
        for name, value in measures.items()
        if not _same(stored.metrics.get(name), value)
    ]
    # In the order of epochs, so that the last one stands for all; a time of its own makes the same
    # point of what is logged again.
    lacking = {
        name: values
        for name, values in entry.history.items()
        if values and not _same(stored.metrics.get(name), values[-1])
    }
    n_epochs = max(map(len, lacking.values()), default=0)
    metrics += [
        Metric(name, values[epoch], at, epoch + 1)
        for epoch in range(n_epochs)
        for name, values in lacking.items()
        if epoch < len(values)
    ]
    _log_batches(client, run_id, "metrics", metrics)
    new = [Param(name, value) for name, value in params.items() if name not in stored.params]
    _log_batches(client, run_id, "params", new)
    tags = {name: value[:_MAX_TEXT] for name, value in {**entry.tags, **own}.items()}
    tags |= _log_artifacts(client, run, entry)
    changed = [RunTag(k, v) for k, v in tags.items() if stored.tags.get(k) != v]
    _log_batches(client, run_id, "tags", changed)


def _same(stored: float | None, value: float) -> bool:
    if stored is None:
        return False
    both_none = math.isnan(stored) and math.isnan(value)
    return both_none or math.isclose(stored, value, rel_tol=1e-12)


def _log_batches(client: MlflowClient, run_id: str, what: str, items: Sequence[Any]) -> None:
    size = _PER_BATCH[what]
    for start in range(0, len(items), size):
        client.log_batch(run_id, **{what: items[start : start + size]})


def _log_artifacts(client: MlflowClient, run: Run, entry: Entry) -> dict[str, str]:
    """Send the artifact folders that have changed, and return the digests of what is there now."""
    run_id, digests = run.info.run_id, {}
    for folder, files in entry.files.items():
        name = f"{DIGEST}.{folder or 'results'}"
        digests[name] = _digest(files)
        if digests[name] != run.data.tags.get(name):
            for file in files:
                client.log_artifact(run_id, str(file), folder or None)
    for path, text in entry.texts.items():
        name = f"{DIGEST}.{path}"
        digests[name] = hashlib.sha256(text.encode()).hexdigest()
        if digests[name] != run.data.tags.get(name):
            client.log_text(run_id, text, path)
    return digests


def _digest(files: Sequence[Path]) -> str:
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
        digest.update(f"{file.name}\0{content}\0".encode())
    return digest.hexdigest()


def _finish(client: MlflowClient, run: Run, entry: Entry, *, anew: bool = False) -> None:
    if anew or run.info.status != "FINISHED":
        client.set_terminated(run.info.run_id, "FINISHED", entry.ended)


def _reason(error: Exception, address: Address) -> str:
    """Return what a user needs of an error of MLflow, in which its cause stands last."""
    text = str(error) or type(error).__name__
    system = re.search(r"\[Errno -?\d+\] ([^'\")\]]+)", text)
    return address.without_secrets(system[1].strip() if system else text)
