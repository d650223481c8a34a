"""Versions of packages that go by several names."""

from __future__ import annotations

from importlib import metadata

import pytest

from cxr_spark.installed import installed_version


@pytest.mark.parametrize("name", ["tensorflow", "tensorflow-cpu"])
def test_tensorflow_is_found_under_either_name(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(asked: str) -> str:
        if asked != name:
            raise metadata.PackageNotFoundError(asked)
        return "2.20.0"

    monkeypatch.setattr(metadata, "version", version)
    assert installed_version("tensorflow") == "2.20.0"
    assert installed_version("numpy") is None


def test_a_package_has_the_version_that_it_tells() -> None:
    import numpy as np

    assert installed_version("numpy") == np.__version__
