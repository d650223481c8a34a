"""A run folder to MLflow: into a real local store where the extra is installed."""

from __future__ import annotations

import base64
import importlib
import json
import math
import os
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cxr_spark.cli import parse_flags
from cxr_spark.config import Experiment
from cxr_spark.errors import RunFailed, UserError, without_credentials
from cxr_spark.stages import run_grid, run_report, run_train
from cxr_spark.tracking import store
from cxr_spark.tracking.address import read_address
from cxr_spark.tracking.entries import Entry, read_entries
from cxr_spark.tracking.store import check_tracking, log_run
from tests.conftest import ROOT
from tests.test_jobs import python
from tests.training.test_job import make_experiment, make_store

EXPERIMENT = "made up"
NAMES = [f"ResNet50-none-{head}-seed{seed}" for head in ("gap", "logistic") for seed in (0, 1)]


@pytest.fixture(scope="session")
def stored_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one network and one classifier, two seeds each, on made-up features."""
    folder = tmp_path_factory.mktemp("tracking")
    make_store(folder / "features")
    run_train(small(folder, heads=["gap", "logistic"]))
    run_report(folder / "run")
    return folder


def small(folder: Path, **changes: object) -> Experiment:
    settings = {"folds": 2, "repeats": 1}
    return make_experiment(folder, name=EXPERIMENT, **{"cross_validation": settings, **changes})


@pytest.fixture
def run(stored_run: Path, tmp_path: Path) -> Path:
    """A copy of that run, for one test to change."""
    shutil.copytree(stored_run / "run", tmp_path / "run")
    return tmp_path / "run"


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """MLflow's own client of a local store, or a skip where the extra is not installed."""
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    for name in ("mlflow", "sqlalchemy", "alembic"):
        pytest.importorskip(name, reason=f"{name}: pip install 'cxr_spark[mlflow]'")
    import mlflow

    return mlflow.MlflowClient(address(tmp_path), address(tmp_path))


def address(folder: Path) -> str:
    return f"sqlite:///{folder / 'mlflow.db'}"


def logged(client: Any) -> dict[str, Any]:
    """Return the runs that MLflow has of the experiment, by the name it shows."""
    [experiment] = [e for e in client.search_experiments() if e.name == EXPERIMENT]
    runs = client.search_runs([experiment.experiment_id])
    assert len({run.info.run_name for run in runs}) == len(runs)
    return {run.info.run_name: run for run in runs}


def artifacts(client: Any, run: Any, folder: str | None = None) -> set[str]:
    return {found.path for found in client.list_artifacts(run.info.run_id, folder)}


def changed(file: Path, **values: object) -> None:
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_mlflow_has_all_that_the_run_folder_tells(run: Path, client: Any, tmp_path: Path) -> None:
    log_run(run, address(tmp_path))
    runs = logged(client)
    assert sorted(runs) == sorted(["run", *NAMES])
    parent, child = runs["run"], runs["ResNet50-none-gap-seed1"]
    results = json.loads((run / "results.json").read_text())

    assert {r.info.status for r in runs.values()} == {"FINISHED"}
    for name in NAMES:
        assert runs[name].data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.params.items() >= {
        "backbone": "ResNet50", "preprocessing": "none", "head": "gap", "seed": "1",
        "weights": "random", "weights_digest": "d" * 64, "image_size": "64x64",
        "task": "pneumonia", "training.epochs": "2", "training.batch_size": "64",
        "split.unit": "patient", "takes": "pooled",
    }.items()  # fmt: skip
    [extraction] = json.loads((run / "experiment.json").read_text())["extractions"]
    assert child.data.params["extraction"] == extraction["fingerprint"]
    assert parent.data.params["extraction"] == extraction["fingerprint"]
    assert not [p for p in runs["ResNet50-none-logistic-seed0"].data.params if "training" in p]

    row = results["rows"][1]
    assert (row["configuration"], row["seed"]) == ("ResNet50-none-gap", 1)
    for name in ("val_auc", "test_auc", "test_auc_low", "test_auc_high", "threshold", "test_brier"):
        assert child.data.metrics[name] == row[name]
    assert "paper_test_keras_auc" not in runs["ResNet50-none-logistic-seed0"].data.metrics
    assert not [name for name, value in child.data.metrics.items() if math.isnan(value)]
    history = json.loads((run / "heads" / "ResNet50-none-gap-seed1.json").read_text())["history"]
    points = client.get_metric_history(child.info.run_id, "epoch/val_keras_auc")
    assert [(p.step, p.value) for p in points] == [
        (1, history["val_auc"][0]),
        (2, history["val_auc"][1]),
    ]

    selected = results["selected"]
    assert parent.data.tags["selected"] == selected
    assert {n for n in NAMES if runs[n].data.tags["selected"] == "true"} == {
        n for n in NAMES if n.startswith(f"{selected}-seed")
    }
    [summary] = [c for c in results["configurations"] if c["configuration"] == selected]
    assert parent.data.metrics["test_auc_low"] == summary["test_auc_low"]
    assert parent.data.metrics["n_images"] == 120
    assert "Demonstration: made up." in parent.data.tags["mlflow.note.content"]

    assert artifacts(client, parent) == {
        "experiment.json", "results.csv", "results.json", "leaks.csv", "report.html",
        "model_card.md", "figures",
    }  # fmt: skip
    assert artifacts(client, parent, "figures") == {
        f"figures/{file.name}" for file in (run / "figures").iterdir()
    }
    assert artifacts(client, child) == {"model", "measures.json"}
    kept = Path(client.download_artifacts(child.info.run_id, "model/ResNet50-none-gap-seed1.keras"))
    assert kept.read_bytes() == (run / "heads" / kept.name).read_bytes()
    assert artifacts(client, runs["ResNet50-none-logistic-seed0"], "model") == {
        f"model/ResNet50-none-logistic-seed0{ending}" for ending in (".skops", ".json")
    }


def test_again_it_is_the_same_and_nothing_is_sent(
    run: Path, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_run(run, address(tmp_path))
    before = {name: stored.to_dictionary() for name, stored in logged(client).items()}
    moved = run.rename(tmp_path / "run of another place").rename(tmp_path / "run")

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("it is there already")

    for what in ("log_batch", "log_artifact", "log_text", "create_run", "set_terminated"):
        monkeypatch.setattr(type(client), what, refuse)
    log_run(moved, address(tmp_path))
    assert {name: stored.to_dictionary() for name, stored in logged(client).items()} == before


def test_what_has_changed_is_updated(run: Path, client: Any, tmp_path: Path) -> None:
    log_run(run, address(tmp_path))
    before = logged(client)
    results = json.loads((run / "results.json").read_text())
    row = results["rows"][1]
    row["threshold"], row["test_auc"] = 0.25, None
    changed(run / "results.json", rows=results["rows"], selected=None)
    (run / "report.html").write_text("another page")
    log_run(run, address(tmp_path))
    after = logged(client)
    ids = {name: stored.info.run_id for name, stored in after.items()}
    assert ids == {name: stored.info.run_id for name, stored in before.items()}
    child = after["ResNet50-none-gap-seed1"]
    assert child.data.metrics["threshold"] == 0.25
    assert math.isnan(child.data.metrics["test_auc"])
    assert child.data.metrics["val_auc"] == row["val_auc"]
    assert after["run"].data.tags["selected"] == "none"
    assert math.isnan(after["run"].data.metrics["test_auc"])
    page = Path(client.download_artifacts(ids["run"], "report.html"))
    assert page.read_text() == "another page"
    kept = Path(client.download_artifacts(child.info.run_id, "measures.json"))
    assert json.loads(kept.read_text())["threshold"] == 0.25


def test_heads_that_join_and_ways_to_measure_come_to_the_same_run(
    stored_run: Path, client: Any, tmp_path: Path
) -> None:
    changes = {"run": str(tmp_path / "run"), "mlflow": address(tmp_path)}
    run_train(small(stored_run, heads=["gap"], seeds=[0], **changes))
    first = logged(client)
    assert sorted(first) == ["ResNet50-none-gap-seed0", "run"]
    evaluation = {"threshold": "sensitivity=1"}
    run_train(small(stored_run, heads=["logistic"], seeds=[0, 1], evaluation=evaluation, **changes))
    both = logged(client)
    assert sorted(both) == sorted([f"ResNet50-none-{name}" for name in
        ("gap-seed0", "logistic-seed0", "logistic-seed1")] + ["run"])  # fmt: skip
    for name, stored in first.items():
        assert both[name].info.run_id == stored.info.run_id
        assert both[name].data.params == stored.data.params
    assert both["run"].data.tags["heads"] == "gap,logistic"
    assert both["run"].data.tags["seeds"] == "0,1"
    assert both["run"].data.tags["evaluation.threshold"] == "sensitivity=1"


def test_afresh_it_is_another_run(stored_run: Path, client: Any, tmp_path: Path) -> None:
    changes = {"run": str(tmp_path / "run"), "mlflow": address(tmp_path), "heads": ["logistic"]}
    for seeds, overwrite in (([0], False), ([1], True)):
        run_train(small(stored_run, seeds=seeds, overwrite=overwrite, **changes))
    [experiment] = [e for e in client.search_experiments() if e.name == EXPERIMENT]
    runs = client.search_runs([experiment.experiment_id])
    assert sorted(run.info.run_name for run in runs) == [
        "ResNet50-none-logistic-seed0", "ResNet50-none-logistic-seed1", "run", "run",
    ]  # fmt: skip


def test_what_broke_off_goes_on(
    run: Path, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent, send = [], type(client).log_artifact

    def break_off(self: object, *where: object) -> None:
        sent.append(where)
        if len(sent) == 4:
            raise OSError(28, "No space left on device")
        send(self, *where)

    with monkeypatch.context() as patched:
        patched.setattr(type(client), "log_artifact", break_off)
        with pytest.raises(RunFailed, match=r"is complete, but .* \(No space left on device\)"):
            log_run(run, address(tmp_path))
    assert 1 < len(logged(client)) < 5
    log_run(run, address(tmp_path))
    runs = logged(client)
    assert sorted(runs) == sorted(["run", *NAMES])
    for name in NAMES:
        assert len(artifacts(client, runs[name], "model")) == 2


def test_a_run_that_was_deleted_is_made_again(run: Path, client: Any, tmp_path: Path) -> None:
    log_run(run, address(tmp_path))
    before = logged(client)
    client.delete_run(before["run"].info.run_id)
    log_run(run, address(tmp_path))
    after = logged(client)
    assert after["run"].info.run_id != before["run"].info.run_id
    for name in NAMES:
        assert after[name].info.run_id == before[name].info.run_id
        assert after[name].data.tags["mlflow.parentRunId"] == after["run"].info.run_id


def test_two_copies_of_a_run_are_one(run: Path, client: Any, tmp_path: Path) -> None:
    log_run(run, address(tmp_path))
    shutil.copytree(run, tmp_path / "copy")
    log_run(tmp_path / "copy", address(tmp_path))
    assert sorted(logged(client)) == sorted(["run", *NAMES])


def test_a_parameter_that_cannot_change_is_told(
    run: Path, client: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log_run(run, address(tmp_path))
    content = json.loads((run / "experiment.json").read_text())
    changed(run / "experiment.json", experiment={**content["experiment"], "image_size": [9, 9]})
    log_run(run, address(tmp_path))
    assert "image_size of run stays 64x64, where the run folder says 9x9" in caplog.text
    assert logged(client)["run"].data.params["image_size"] == "64x64"


def test_an_experiment_that_is_deleted_is_told_before(
    run: Path, client: Any, tmp_path: Path
) -> None:
    log_run(run, address(tmp_path))
    [experiment] = [e for e in client.search_experiments() if e.name == EXPERIMENT]
    client.delete_experiment(experiment.experiment_id)
    with pytest.raises(UserError, match="MLFLOW_EXPERIMENT_NAME"):
        check_tracking(address(tmp_path), EXPERIMENT)


def test_the_environment_names_another_experiment(
    run: Path, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "ward 5")
    log_run(run, address(tmp_path))
    assert {e.name for e in client.search_experiments()} == {"Default", "ward 5"}


def test_a_store_of_files_is_taken_where_mlflow_takes_it(
    run: Path, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = f"file:{tmp_path / 'files'}"
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    for _ in range(2):
        check_tracking(place, EXPERIMENT)
        log_run(run, place)
    assert sorted(logged(type(client)(place, place))) == sorted(["run", *NAMES])
    monkeypatch.delenv("MLFLOW_ALLOW_FILE_STORE")
    from mlflow import environment_variables

    if not hasattr(environment_variables, "MLFLOW_ALLOW_FILE_STORE"):
        return  # as MLflow 3.12, which asks for no leave
    with pytest.raises(UserError, match="MLFLOW_ALLOW_FILE_STORE"):
        check_tracking(f"file:{tmp_path / 'other'}", EXPERIMENT)


def test_no_secret_is_kept(
    run: Path, client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-secret")
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "planted-token")
    log_run(run, address(tmp_path) + "?timeout=17")
    folder = tmp_path / "mlruns"
    files = [
        f for f in [tmp_path / "mlflow.db", *folder.rglob("*"), *run.rglob("*")] if f.is_file()
    ]
    assert len(files) > 20
    for file in files:
        content = file.read_bytes()
        for planted in (b"planted-", b"AWS_SECRET", b"timeout=17"):
            assert planted not in content, file
    assert os.environ.get("MLFLOW_HTTP_REQUEST_TIMEOUT") is None


def test_a_store_is_not_made_before_there_is_a_run(client: Any, tmp_path: Path) -> None:
    check_tracking(f"sqlite:///{tmp_path / 'new' / 'mlflow.db'}", EXPERIMENT)
    assert not (tmp_path / "new").exists()


def test_a_file_that_is_no_store_is_told_at_once(client: Any, tmp_path: Path) -> None:
    (tmp_path / "page.db").write_text("no database, " * 100)
    with pytest.raises(UserError, match="MLflow to answer.*not a database"):
        check_tracking(f"sqlite:///{tmp_path / 'page.db'}", EXPERIMENT)


@pytest.fixture
def closed_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def asked_as() -> list[str | None]:
    """How those who asked the other server said who they are."""
    return []


@pytest.fixture
def other_server(asked_as: list[str | None]) -> Iterator[int]:
    """A server that is not MLflow's, and sends a page for everything."""
    from http.server import BaseHTTPRequestHandler, HTTPServer

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked_as.append(self.headers["Authorization"])
            self.send_response(200)
            self.end_headers()
            self.wfile.write(b"<html>\n<p>welcome</p></html>")

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_port
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_server_that_is_not_there_is_told_before_anything_starts(
    run: Path, client: Any, closed_port: int, tmp_path: Path
) -> None:
    place = f"http://alice:pass-word@127.0.0.1:{closed_port}/"
    expected = rf"--mlflow. Received: http://127.0.0.1:{closed_port} \(Connection refused\)$"
    before = {file: file.stat().st_mtime_ns for file in run.rglob("*")}
    with pytest.raises(UserError, match=expected):
        run_report(run, place)
    assert {file: file.stat().st_mtime_ns for file in run.rglob("*")} == before
    new = make_experiment(tmp_path, run=str(tmp_path / "new"), mlflow=place)
    for stage in (run_train, run_grid):
        with pytest.raises(UserError, match=expected):
            stage(new)
    assert not (tmp_path / "new").exists()


def test_a_server_that_does_not_answer_is_told(
    client: Any, silent_port: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with pytest.raises(UserError, match=r"(?i)timed out"):
        check_tracking(f"http://127.0.0.1:{silent_port}", EXPERIMENT)


def test_a_server_of_something_else_is_told_in_one_line(
    client: Any, other_server: int, asked_as: list[str | None]
) -> None:
    for user in ("", "alice:p%40ss@"):
        with pytest.raises(UserError, match="MLflow to answer.*welcome") as raised:
            check_tracking(f"http://{user}127.0.0.1:{other_server}", EXPERIMENT)
        assert "\n" not in str(raised.value)
        assert "alice" not in str(raised.value)
    basic = base64.b64encode(b"alice:p@ss").decode()
    assert asked_as == [None, f"Basic {basic}"]
    assert "MLFLOW_TRACKING_PASSWORD" not in os.environ


def test_a_server_that_goes_while_heads_train_costs_no_training(
    stored_run: Path, client: Any, closed_port: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(store, "check_tracking", lambda *_: None)  # it was there then
    place = f"http://alice:pass-word@127.0.0.1:{closed_port}"
    run = tmp_path / "run"
    new = small(stored_run, heads=["gap"], seeds=[0], run=str(run), mlflow=place)
    with pytest.raises(RunFailed, match="is complete, but could not be logged") as raised:
        run_train(new)
    assert f"Connection refused). To log it: jobs/report.py --run {run}" in str(raised.value)
    assert "pass-word" not in str(raised.value)
    assert (run / "results.csv").exists()
    stored = "".join(file.read_text() for file in run.rglob("*.json"))
    assert "pass-word" not in stored
    assert "alice" not in stored
    run_report(run, address(tmp_path))
    assert sorted(logged(client)) == ["ResNet50-none-gap-seed0", "run"]


@pytest.mark.parametrize("job", ["train", "grid", "report"])
def test_a_missing_extra_is_one_line_and_nothing_is_written(
    job: str, stored_run: Path, tmp_path: Path
) -> None:
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "mlflow.py").write_text(
        "raise ModuleNotFoundError(\"No module named 'mlflow'\", name='mlflow')\n"
    )
    path = os.pathsep.join((str(tmp_path / "hidden"), os.getcwd()))
    run = stored_run / "run" if job == "report" else tmp_path / "run"
    config = [] if job == "report" else ["--config", "conf/demo.yaml"]
    features = ["--features", str(stored_run / "features")] if job == "train" else []
    done = python(
        job, *config, *features, "--run", str(run), "--mlflow", "http://localhost:5000",
        PYTHONPATH=path,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr == (
        f"{job}.py: error: Expected the package mlflow for --mlflow. "
        "Received: No module named 'mlflow'. Run pip install 'cxr_spark[mlflow]'.\n"
    )
    assert not (tmp_path / "run").exists()


def test_without_the_flag_mlflow_is_not_imported(run: Path) -> None:
    loaded = {name for name in sys.modules if name.split(".")[0] == "mlflow"}
    run_report(run)
    assert {name for name in sys.modules if name.split(".")[0] == "mlflow"} == loaded
    assert not (run / "mlflow.json").exists()
    importlib.import_module("cxr_spark.tracking.store")
    assert {name for name in sys.modules if name.split(".")[0] == "mlflow"} == loaded


def entries_of(run: Path) -> dict[str, Entry]:
    return {entry.key: entry for entry in read_entries(run)}


def test_predictions_of_single_images_are_in_no_entry(run: Path) -> None:
    files = [f for e in read_entries(run) for kept in e.files.values() for f in kept]
    assert not [file for file in files if file.suffix == ".parquet"]


def test_a_link_out_of_the_run_folder_is_not_followed(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "private.svg").write_text("private")
    (run / "figures" / "planted.svg").symlink_to(tmp_path / "private.svg")
    names = [file.name for file in entries_of(run)[""].files["figures"]]
    assert names
    assert "planted.svg" not in names
    assert "planted.svg leads out of the run folder" in caplog.text


def test_what_grows_is_a_tag_and_what_is_fixed_a_parameter(run: Path) -> None:
    entry = entries_of(run)[""]
    assert entry.tags.items() >= {"heads": "gap,logistic", "seeds": "0,1"}.items()
    assert entry.tags["evaluation.threshold"] == "youden"
    assert not {"heads", "seeds", "custom_heads"} & entry.params.keys()
    assert not [n for n in entry.params if n.startswith(("evaluation", "cross_validation"))]
    assert {"training.memory_gb", "features", "run"}.isdisjoint(entry.params)


def test_a_head_of_ones_own_is_told_as_it_was_trained(run: Path) -> None:
    content = json.loads((run / "experiment.json").read_text())
    own = {"dense": [64, 8], "dropout": 0.5, "weight_decay": 0.1, "class_weights": "balanced",
           "epochs": 30, "learning_rate": None, "early_stopping": 5, "takes": "pooled"}  # fmt: skip
    changed(run / "experiment.json",
            experiment={**content["experiment"], "custom_heads": {"gap": own}})  # fmt: skip
    params = entries_of(run)["ResNet50-none-gap-seed0"].params
    assert params.items() >= {
        "head.dense": "64,8", "head.dropout": "0.5", "head.weight_decay": "0.1",
        "head.class_weights": "balanced", "training.epochs": "30",
        "training.learning_rate": "0.001", "training.early_stopping": "5",
    }.items()  # fmt: skip


def test_a_run_without_results_is_refused(run: Path) -> None:
    (run / "results.json").unlink()
    with pytest.raises(UserError, match=r"to hold results.json.*Run jobs/report.py first"):
        read_entries(run)


def test_a_damaged_key_is_told(run: Path) -> None:
    (run / "mlflow.json").write_text('{"run_key": "\' OR 1"}')
    with pytest.raises(UserError, match="Remove the file"):
        log_run(run, "sqlite:///x.db")


@pytest.mark.parametrize(
    ("given", "shown", "uri"),
    [
        ("http://h:5000", "http://h:5000", "http://h:5000"),
        ("http://h:5000/", "http://h:5000", "http://h:5000"),
        ("HTTPS://u:p%40s@h/mlflow/", "https://h/mlflow", "https://h/mlflow"),
        ("http://u:p@s@h", "http://h", "http://h"),
        ("sqlite:///a/b.db", "sqlite:///a/b.db", "sqlite:///a/b.db"),
        ("sqlite:////a/b@c.db?x=1", "sqlite:////a/b@c.db", "sqlite:////a/b@c.db?x=1"),
        ("file:/a/b", "file:/a/b", "file:/a/b"),
        ("postgresql://u:p@h/db?password=q", "postgresql://h/db", "postgresql://u:p@h/db?password=q"),
    ],
)  # fmt: skip
def test_an_address_shows_no_password(given: str, shown: str, uri: str) -> None:
    found = read_address(given)
    assert (found.shown, found.uri) == (shown, uri)
    assert repr(found) == f"Address(scheme={found.scheme!r}, shown={shown!r})"


def test_an_address_tells_a_server_its_user() -> None:
    found = read_address("https://alice:p%40ss@h/mlflow/")
    assert (found.user, found.password) == ("alice", "p@ss")
    assert read_address("http://h").user is None


@pytest.mark.parametrize(
    "given",
    ["", "localhost:5000", "mlruns", "http://", "http://h:port", "sqlite://x.db", "sqlite:///",
     "http://u:secret@h:port", "u:secret@h:5000", "http://[u:secret@h"],
)  # fmt: skip
def test_what_is_no_address_is_refused_without_its_password(given: str) -> None:
    with pytest.raises(UserError, match=r"Expected --mlflow.*http://HOST:5000") as raised:
        read_address(given)
    assert "secret" not in str(raised.value)


def test_the_address_in_a_message_of_mlflow_is_hidden() -> None:
    found = read_address("postgresql://alice:pass-word@h/db?sslpassword=other")
    text = f"no {found.uri}\nno user with pass-word, http://x:y@h, {'z' * 900}"
    told = found.without_secrets(text)
    assert told.startswith("no postgresql://h/db no user with ***, http://h, zzz")
    assert len(told) == 500


def test_a_wrong_flag_shows_no_password(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        parse_flags("x.py", "", ("run", "mlflow"), ["--run", "r", "--mlfow", "http://u:pw@h"])
    assert "u:pw" not in capsys.readouterr().err
    assert without_credentials("a 'http://u:p@h/x' b@c") == "a 'http://h/x' b@c"


def test_what_ctrl_c_says_shows_no_password() -> None:
    code = (
        "import os, signal; from cxr_spark.cli import run_job; "
        "run_job(lambda: os.kill(os.getpid(), signal.SIGINT))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "--mlflow", "http://alice:pass-word@h:5000"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 130
    assert "--mlflow http://h:5000" in done.stderr
    assert "pass-word" not in done.stderr
