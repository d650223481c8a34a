"""Extraction and reader on few images: that they run, not how fast."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cxr_spark.benchmark import extraction, heads, spark_sections
from cxr_spark.benchmark.drawn_features import draw_features
from cxr_spark.benchmark.extraction import Timed
from cxr_spark.benchmark.images import ImageSet, find_images
from cxr_spark.benchmark.ours import write_properties
from cxr_spark.benchmark.rows import Row
from cxr_spark.benchmark.settings import Settings
from cxr_spark.extraction.store import list_extractions
from tests.benchmark.test_peers import WORKING, settings
from tests.conftest import FULL
from tests.test_jobs import submit


@pytest.fixture
def images(phantoms: Path) -> ImageSet:
    return find_images(phantoms, 40, "phantoms")


def test_the_job_runs_its_sections_and_a_program(phantoms: Path, tmp_path: Path) -> None:
    """Of so few images that no marginal rate may follow; what was found is a row all the same."""
    (tmp_path / "peers").mkdir()
    (tmp_path / "peers" / "other.py").write_text(WORKING)
    out = tmp_path / "bench.json"
    done = submit(
        "jobs/benchmark.py", "--images", str(phantoms), "--limit", "40", "--repeat", "1",
        "--sections", "extraction,reader,training", "--feature-maps",
        "--peers", str(tmp_path / "peers"), "--out", str(out),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    content = json.loads(out.read_text())
    assert content["complete"] is True
    rows = {row["what"]: row for row in content["rows"]}
    assert {
        "extraction, MobileNetV3Small, phantoms",
        "reader, pooled, MobileNetV3Small",
        "reader, feature_map, MobileNetV3Small",
        "reader, pooled, drawn",
        "training, fc1024",
        "marginal, MobileNetV3Small, phantoms against other",
    } <= set(rows), rows
    for what in ("reader, feature_map, MobileNetV3Small", "training, fc1024"):
        assert rows[what]["ratio"] > 0
    assert rows["training, fc1024"]["target"] == 0.95
    assert rows["training, fc1024"]["note"] == "10 epochs of stored maps 40x7x7x576"
    assert rows["reader, pooled, drawn"]["note"].startswith("40 rows")
    assert rows["reader, pooled, drawn"]["target"] is None
    assert rows["reader, pooled, MobileNetV3Small"]["unit"] == "rows/s"


def test_drawn_rows_are_an_extraction_and_have_the_target_where_there_are_many(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heads, "MIN_SECONDS", 0.0)
    monkeypatch.setattr(heads, "LONG_SECONDS", 0.0)
    draw_features(tmp_path / "drawn", 5000)
    (record,) = list_extractions(tmp_path / "drawn")
    assert (record.n_rows, len(record.files)) == (5000, 2)
    for least, target in ((5000, 0.75), (5001, None)):
        monkeypatch.setattr(heads, "N_ROWS", least)
        (row,) = heads.measure_reader(settings(repeat=1), tmp_path / "drawn")
        assert (row.what, row.target) == ("reader, pooled, drawn", target)
        assert row.rate is not None


def test_training_on_drawn_maps_has_no_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Answers(contextlib.AbstractContextManager):
        def __init__(self, *_: object) -> None: ...

        def __exit__(self, *_: object) -> None: ...

        def ask(self, method: str) -> list[float]:
            return [{"ours": 3.0, "plain": 2.0}[method]]

    monkeypatch.setattr(heads, "Processes", Answers)
    (row,) = heads.measure_training(settings(repeat=2), tmp_path, None)
    assert (row.ratio, row.n_pairs, row.target, row.met) == (1.5, 2, None, None)
    assert row.note == "10 epochs of generated maps 512x7x7x576"


@pytest.mark.parametrize("named", ["", "/nowhere"])
def test_on_a_cluster_a_folder_for_all_nodes_must_be_named(named: str) -> None:
    done = submit("jobs/benchmark.py", "--limit", "8", master="spark://127.0.0.1:1", TMPDIR=named)
    assert done.returncode == 2, done.stdout[-3000:]
    assert "error: Expected TMPDIR to be a folder that every node" in done.stdout


# Of which nothing is asked but its name, where nothing is extracted.
NO_SESSION: Any = None
BACKBONE: Any = SimpleNamespace(identity=SimpleNamespace(backbone="MobileNetV3Small"))


def test_the_marginal_rate_and_the_fixed_part_add_up(
    images: ImageSet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def timed(*arguments: Any) -> Timed:
        n_images: int = arguments[-1]
        return Timed(n_images, 3.0 + n_images / 20, listing=1.0, commit=0.5)

    monkeypatch.setattr(extraction, "timed_extract", timed)
    rate, first, fixed = extraction.measure_extraction(
        NO_SESSION, settings(), images, BACKBONE, tmp_path, core_rate=25.0
    )
    assert rate.rate == pytest.approx(20.0)
    assert rate.note == "the compute core alone gave 25"
    assert first.rate == pytest.approx(5.0)
    assert fixed.rate == pytest.approx(3.0)
    assert fixed.note.startswith("listing 1.00 s, commit 0.50 s")
    assert "1.50 s (what is left)" in fixed.note


def test_a_run_that_gives_no_rate_loses_none_of_the_others(
    images: ImageSet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    longer = iter([1.0, 5.0, 5.0, 5.0, 9.0, 2.0, 8.0])  # of the warm-up, and of three pairs

    def timed(*arguments: Any) -> Timed:
        return Timed(arguments[-1], next(longer), listing=1.0, commit=0.5)

    monkeypatch.setattr(extraction, "timed_extract", timed)
    rate, _, fixed = extraction.measure_extraction(
        NO_SESSION, settings(repeat=3), images, BACKBONE, tmp_path, core_rate=None
    )
    n_whole = len(images.paths)
    rates = [(n_whole - n_whole // 4) / seconds for seconds in (4.0, 6.0)]
    assert (rate.n_pairs, fixed.n_pairs) == (2, 2)
    assert rate.rate == pytest.approx(sum(rates) / 2)
    assert rate.note.startswith("1 left out: ")


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


WITH_CORES = WORKING.replace(
    "args = ", 'parser.add_argument("--cores", type=int, default=1)\nargs = '
).replace('"images": args.limit,', '"images": args.limit, "decode_share": 0.1,')


@FULL
def test_every_section_that_runs_jobs_gives_its_rows(phantoms: Path, tmp_path: Path) -> None:
    """Of so few images that no rate may follow; then a row says so, and nothing fails."""
    peers = tmp_path / "peers"
    peers.mkdir()
    for name in ("ceiling.py", "paper_grid.py"):
        (peers / name).write_text(WITH_CORES)
    out = tmp_path / "bench.json"
    done = submit(
        "jobs/benchmark.py", "--images", str(phantoms), "--limit", "80", "--repeat", "1",
        "--sections", "extraction,maps,cores,pass,growth,grid",
        "--peers", str(peers), "--out", str(out),
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    content = json.loads(out.read_text())
    assert content["complete"] is True
    told = {row["what"]: row["note"] or "" for row in content["rows"]}
    for part in ("--feature-maps", "from one core", "in one pass", "line", "memory", "paper_grid"):
        assert any(part in what for what in told), told
    assert not [note for note in told.values() if "failed" in note], told
