"""Who may import whom."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

PACKAGE = ROOT / "cxr_spark"
ROOMS = ("engine", "dataset", "extraction", "training", "evaluation", "report")


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
        ("training", {"cxr_spark.dataset", "cxr_spark.extraction.store"}),
        ("evaluation", set()),
        ("report", set()),
    ],
)
def test_rooms_know_one_another_by_their_stored_tables_only(
    room: str, declarations: set[str]
) -> None:
    others = {f"cxr_spark.{other}" for other in ROOMS if other != room}
    for name in imports_of(room):
        if any(name == other or name.startswith(f"{other}.") for other in others):
            assert any(name == d or name.startswith(f"{d}.") for d in declarations), name


@pytest.mark.parametrize("room", ["evaluation", "report"])
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
