"""Who may import whom, and what no module may do."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "cxr_spark"
ROOMS = ("engine", "dataset", "extraction", "training", "evaluation", "report", "tracking")


def imports(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""


def imports_of(room: str) -> set[str]:
    files = sorted((PACKAGE / room).rglob("*.py"))
    assert files
    return {name for file in files for name in imports(file)}


@pytest.mark.parametrize(
    ("room", "declarations"),
    [
        ("engine", set()),
        ("dataset", set()),
        ("extraction", {"cxr_spark.dataset", "cxr_spark.engine"}),
        (
            "training",
            {"cxr_spark.dataset", "cxr_spark.engine.device", "cxr_spark.extraction.store"},
        ),
        ("evaluation", set()),
        ("report", set()),
        ("tracking", {"cxr_spark.training.run_folder"}),
    ],
)
def test_rooms_know_one_another_by_their_stored_tables_only(
    room: str, declarations: set[str]
) -> None:
    others = {f"cxr_spark.{other}" for other in ROOMS if other != room}
    for name in imports_of(room):
        if any(name == other or name.startswith(f"{other}.") for other in others):
            assert any(name == d or name.startswith(f"{d}.") for d in declarations), name


@pytest.mark.parametrize("room", ["evaluation", "report", "tracking"])
def test_measures_and_report_know_neither_spark_nor_tensorflow(room: str) -> None:
    roots = {name.split(".")[0] for name in imports_of(room)}
    assert not roots & {"pyspark", "tensorflow", "keras", "petastorm"}


def test_the_engine_knows_no_spark() -> None:
    roots = {name.split(".")[0] for name in imports_of("engine")}
    assert not roots & {"pyspark", "petastorm", "pandas", "pyarrow"}


def test_petastorm_is_imported_in_one_module() -> None:
    users = [f for f in sorted(PACKAGE.rglob("*.py")) if "petastorm" in set(imports(f))]
    assert users == [PACKAGE / "training" / "reader.py"]


def test_nothing_imports_the_benchmark_but_its_job() -> None:
    for file in PACKAGE.rglob("*.py"):
        if file.parent.name != "benchmark":
            assert not any(name.startswith("cxr_spark.benchmark") for name in imports(file)), file


def test_nothing_imports_the_jobs() -> None:
    for file in PACKAGE.rglob("*.py"):
        assert not any(name.split(".")[0] == "jobs" for name in imports(file)), file


# Modules and calls that run code which they find in a file.
UNPICKLING = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
UNSAFE_CALLS = {
    "eval", "exec", "yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.unsafe_load_all",
    "yaml.full_load", "yaml.full_load_all", "pd.read_pickle", "pandas.read_pickle", "torch.load",
    "keras.config.enable_unsafe_deserialization", "enable_unsafe_deserialization",
}  # fmt: skip
SAFE_OPTIONS = {"allow_pickle": False, "safe_mode": True, "weights_only": True}


def unsafe_in(source: str) -> list[str]:
    """Return what a module does that may run code from a data, features or run folder."""
    tree = ast.parse(source)
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [a.name for a in node.names if a.name.split(".")[0] in UNPICKLING]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [n for n in names if n.split(".")[0] in UNPICKLING or n in UNSAFE_CALLS]
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            if called in UNSAFE_CALLS or called.endswith(".enable_unsafe_deserialization"):
                found.append(called)
            for keyword in node.keywords:
                if keyword.arg in SAFE_OPTIONS:
                    safe = ast.Constant(SAFE_OPTIONS[keyword.arg])
                    if ast.dump(keyword.value) != ast.dump(safe):
                        found.append(f"{called}({ast.unparse(keyword)})")
    return found


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "import os, marshal", "from pickle import loads", "import dill as d",
        "from yaml import unsafe_load", "yaml.load(f)", "yaml.load(f, Loader=yaml.Loader)",
        "yaml.unsafe_load(f)", "np.load(f, allow_pickle=True)", "np.load(f, allow_pickle=yes)",
        "keras.models.load_model(f, safe_mode=False)", "eval(text)", "exec(text)",
        "keras.config.enable_unsafe_deserialization()", "pd.read_pickle(f)",
        "keras.src.saving.serialization_lib.enable_unsafe_deserialization()",
    ],
)  # fmt: skip
def test_what_runs_code_from_files_is_seen(source: str) -> None:
    assert len(unsafe_in(source)) == 1


@pytest.mark.parametrize(
    "source",
    ["yaml.safe_load(f)", "np.load(f)", "np.load(f, allow_pickle=False)", "model.eval()",
     "keras.models.load_model(f, safe_mode=True)", "import yaml"],
)  # fmt: skip
def test_what_does_not_is_let_through(source: str) -> None:
    assert unsafe_in(source) == []


def test_no_module_runs_code_from_files() -> None:
    files = [*PACKAGE.rglob("*.py"), *(ROOT / "jobs").glob("*.py")]
    assert len(files) > 50
    found = {str(f): unsafe_in(f.read_text(encoding="utf-8")) for f in files}
    assert not {file: what for file, what in found.items() if what}
