from __future__ import annotations

import importlib.util
import json
import subprocess
from types import ModuleType, SimpleNamespace

import pytest

from tests.conftest import ROOT

CLEAN = {"name": "numpy", "version": "1.26.4", "vulns": []}
OURS = {"name": "cxr_spark", "skip_reason": "Dependency not found on PyPI: cxr-spark (0.1.0)"}
SKIPPED = {"name": "jinja2", "skip_reason": "Dependency not found\non PyPI: jinja2 (3.1.6)"}
ACCEPTED = {
    "name": "setuptools",
    "version": "69.5.1",
    "vulns": [
        {"id": "PYSEC-2025-49", "aliases": ["CVE-2025-47273"], "fix_versions": ["78.1.1"]},
        {"id": "CVE-2024-6345", "aliases": [], "fix_versions": ["70.0.0"]},
    ],
}
VULNERABLE = {
    "name": "pillow",
    "version": "9.0.0",
    "vulns": [{"id": "PYSEC-1", "aliases": ["CVE-1"], "fix_versions": ["10.0.1", "10.1.0"]}],
}


@pytest.fixture(scope="module")
def audit() -> ModuleType:
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci" / "audit.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("dependencies", "problems"),
    [
        ([CLEAN, OURS, ACCEPTED], []),
        (
            [CLEAN, SKIPPED, OURS],
            [
                "Expected every package to be looked up. Received: 1 of 2 that were not, "
                "jinja2 (pip-audit says of the first: Dependency not found on PyPI: jinja2 (3.1.6))"
            ],
        ),
        ([CLEAN, VULNERABLE], ["pillow 9.0.0: PYSEC-1, fixed in 10.0.1, 10.1.0"]),
        ([OURS], ["Expected packages to audit. Received: none"]),
        ([], ["Expected packages to audit. Received: none"]),
    ],
    ids=["clean", "skipped", "vulnerable", "ours alone", "nothing"],
)
def test_what_was_not_looked_up_is_a_problem_as_an_advisory_is(
    audit: ModuleType, dependencies: list[dict], problems: list[str]
) -> None:
    assert audit.judge(dependencies) == problems


@pytest.mark.parametrize(
    ("stdout", "stderr", "status", "said"),
    [
        (json.dumps({"dependencies": [CLEAN], "fixes": []}), "", 0, ""),
        (json.dumps({"dependencies": [SKIPPED], "fixes": []}), "No known", 1, "1 of 1 that were"),
        ("", "a warning\nERROR: no connection\n", 1, "reach its service. Received: ERROR: no con"),
        ("", "", 1, "Received: exit status 1"),
    ],
    ids=["clean", "skipped", "no service", "silent"],
)
def test_the_exit_status_says_whether_all_is_well(
    audit: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    stdout: str, stderr: str, status: int, said: str,
) -> None:  # fmt: skip
    done = SimpleNamespace(stdout=stdout, stderr=stderr, returncode=1)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: done)
    monkeypatch.setattr("sys.argv", ["audit.py", "/site-packages"])
    assert audit.main() == status
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == status
