"""Extraction and reader on few images: that they run, not how fast."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cxr_spark.benchmark import extraction, spark_sections
from cxr_spark.benchmark.extraction import Timed, load, timed_extract
from cxr_spark.benchmark.heads import measure_reader
from cxr_spark.benchmark.images import ImageSet, find_images
from cxr_spark.benchmark.ours import write_properties
from cxr_spark.benchmark.rows import Row
from cxr_spark.benchmark.settings import Settings
from tests.benchmark.test_peers import settings


@pytest.fixture
def images(phantoms: Path) -> ImageSet:
    return find_images(phantoms, 40, "phantoms")


def test_extraction_is_timed_and_its_features_are_read(
    spark: Any, images: ImageSet, tmp_path: Path
) -> None:
    asked = settings(repeat=1, feature_maps=True)
    backbone, loading = load(asked, "MobileNetV3Small", images, tmp_path)
    assert loading.unit == "s"
    timed = timed_extract(spark, asked, images, backbone, tmp_path, 40)
    assert timed.n_images == 40
    assert 0 < timed.listing < timed.total
    assert 0 <= timed.commit < timed.total
    pooled, maps = measure_reader(asked, tmp_path / "whole")
    for row in (pooled, maps):
        assert row.unit == "rows/s"
        assert row.ratio is not None
        assert row.ratio > 0


def test_the_marginal_rate_and_the_fixed_part_add_up(
    images: ImageSet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def timed(*arguments: Any) -> Timed:
        n_images: int = arguments[-1]
        return Timed(n_images, 3.0 + n_images / 20, listing=1.0, commit=0.5)

    class Named:
        backbone = "MobileNetV3Small"

    class Backbone:
        identity = Named()

    monkeypatch.setattr(extraction, "timed_extract", timed)
    spark: Any = None
    backbone: Any = Backbone()
    rate, first, fixed = extraction.measure_extraction(
        spark, settings(), images, backbone, tmp_path, core_rate=25.0
    )
    assert rate.rate == pytest.approx(20.0)
    assert rate.ratio == pytest.approx(0.8)
    assert first.rate == pytest.approx(5.0)
    assert fixed.rate == pytest.approx(3.0)
    assert fixed.note.startswith("listing 1.00 s, commit 0.50 s")
    assert "1.50 s (what is left)" in fixed.note


def test_a_section_that_fails_is_a_row_and_the_others_go_on(
    monkeypatch: pytest.MonkeyPatch, images: ImageSet, tmp_path: Path
) -> None:
    def failing(settings: Settings, folder: Path, features: Path | None) -> list[Row]:
        raise ValueError("it broke\nfor a long reason")

    monkeypatch.setattr(spark_sections, "measure_training", failing)
    rows: list[Row] = []
    spark_sections.run_spark_sections(
        settings(sections=["training"]), [images], tmp_path, tmp_path, {}, rows.extend
    )
    (row,) = rows
    assert (row.rate, row.note) == (None, "it broke")


def test_the_settings_of_this_driver_are_those_of_the_next(spark: Any, tmp_path: Path) -> None:
    write_properties(tmp_path / "spark.conf")
    lines = dict(line.split(" ", 1) for line in (tmp_path / "spark.conf").read_text().splitlines())
    assert lines["spark.master"] == "local[2]"
    assert lines["spark.driver.memory"] == "2g"
    assert not any(key.startswith("spark.app.") for key in lines)
