"""The leak check of a whole run, from a feature store to leaks.csv and the report."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from cxr_spark.errors import UserError
from cxr_spark.evaluation.leaks import COMPONENTS_SHARE, THRESHOLD, Leak, Leaks, choose_compared
from cxr_spark.leak_check import _write, read_leaks
from cxr_spark.stages import run_report, run_train
from cxr_spark.training.run_folder import read_experiment
from tests.training.test_job import N, make_experiment, make_store

PAIRS = {("train", "val"), ("train", "test"), ("val", "test")}
# Of official_split test are i0, i4, i8 and so on: two pairs of the same pixels across it, one not.
DIGESTS = [f"{i:040x}" for i in range(N)]
DIGESTS[1], DIGESTS[2], DIGESTS[8] = DIGESTS[0], DIGESTS[0], DIGESTS[4]


def slow_check(run: Path, features: Path) -> set[tuple[str, ...]]:
    """Every pair of images in the predictions, by pixels and by whitened features of the store."""
    (record,) = features.glob("*/_extraction.json")
    stored = pq.ParquetDataset(record.parent).read().to_pandas()
    stored = stored.set_index("image_id").sort_index()
    predictions = pq.read_table(next((run / "predictions").glob("*-seed*.parquet"))).to_pandas()
    splits = predictions.set_index("image_id")["split"].reindex(stored.index).to_numpy()
    pooled = np.stack(stored["pooled"]).astype(np.float64)
    train = pooled[splits == "train"]
    assert pooled.shape[1] <= COMPONENTS_SHARE * len(train)
    standard = (pooled - train.mean(axis=0)) / train.std(axis=0)
    covariance = np.cov(standard[splits == "train"].T, bias=True)
    mahalanobis = standard @ np.linalg.inv(covariance) @ standard.T
    length = np.sqrt(np.diag(mahalanobis))
    found = set()
    for i, one in enumerate(stored.index):
        for j, other in enumerate(stored.index):
            if (splits[i], splits[j]) in PAIRS:
                names = splits[i], one, splits[j], other
                if stored["pixels_digest"].iloc[i] == stored["pixels_digest"].iloc[j]:
                    found.add((*names, "pixels"))
                elif mahalanobis[i, j] / length[i] / length[j] >= THRESHOLD:
                    found.add((*names, "features"))
    return found


def test_a_run_lists_and_counts_images_in_two_splits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("cxr_spark.leak_check.MIN_COMPONENTS", 1)
    make_store(tmp_path / "features", digests=DIGESTS)
    run = tmp_path / "run"
    with caplog.at_level(logging.INFO, logger="cxr_spark"):
        run_train(make_experiment(tmp_path, heads=["gap"], seeds=[0]))
    expected = slow_check(run, tmp_path / "features")
    leaks = read_leaks(run)
    assert leaks is not None
    found = set(leaks.drop(columns="similarity").itertuples(index=False, name=None))
    assert found == expected
    assert {(image_a, image_b) for _, image_a, _, image_b, by in found if by == "pixels"} >= {
        ("i001", "i000"), ("i002", "i000")
    }  # fmt: skip
    assert not any({"i004", "i008"} == {image_a, image_b} for _, image_a, _, image_b, _ in found)
    told = read_experiment(run)["leaks"]
    assert (told["n_images"], told["n_compared"], told["n_listed"]) == (N, N, len(expected))
    for count in told["counts"]:
        key = count["split_a"], count["split_b"], count["by"]
        pairs = [pair for pair in expected if (pair[0], pair[2], pair[4]) == key]
        assert (count["n_pairs"], count["n_images"]) == (len(pairs), len({p[3] for p in pairs}))
    n_pixels = sum(pair[4] == "pixels" for pair in expected)
    assert f"leaks: across splits {n_pixels} pairs of images have the same pixels" in caplog.text
    run_report(run)
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "i001" in page
    assert "Pixels are compared" in page


def test_the_check_is_made_once_and_made_up_for_where_it_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_store(tmp_path / "features", digests=DIGESTS)
    experiment = make_experiment(tmp_path, heads=["gap"], seeds=[0])
    run_train(experiment)
    file = tmp_path / "run" / "leaks.csv"
    before = file.read_bytes()
    file.unlink()
    run_train(experiment)
    assert file.read_bytes() == before
    monkeypatch.setattr("cxr_spark.leak_check.find_leaks", lambda *_: pytest.fail("made again"))
    run_train(make_experiment(tmp_path, heads=["gap"], seeds=[1]))


def test_what_is_not_compared_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make_store(tmp_path / "features", digests=DIGESTS)
    run_train(make_experiment(tmp_path, heads=["gap"], seeds=[0]))
    assert f"0 of {N} images were compared by features: training images differ in" in caplog.text
    assert read_experiment(tmp_path / "run")["leaks"]["n_compared"] == 0
    caplog.clear()
    monkeypatch.setattr("cxr_spark.leak_check.MIN_COMPONENTS", 1)
    monkeypatch.setattr(
        "cxr_spark.leak_check.choose_compared", lambda s: choose_compared(s, max_pairs=1500)
    )
    run_train(make_experiment(tmp_path, heads=["gap"], seeds=[0], overwrite=True))
    n_compared = read_experiment(tmp_path / "run")["leaks"]["n_compared"]
    assert 30 < n_compared < 90
    assert f"{n_compared} of {N} images were compared by features: an even sample" in caplog.text


def test_names_of_any_kind_come_back_from_leaks_csv(tmp_path: Path) -> None:
    names = ["NA", "", 'a"b,c', "a\nb", "a\rb", "<script>", "ä", "1.50", " x "]
    pairs = tuple(Leak("train", name, "test", name[::-1], "features", 0.75) for name in names)
    _write(tmp_path / "leaks.csv", Leaks(pairs, ()))
    leaks = read_leaks(tmp_path)
    assert leaks is not None
    assert leaks.to_dict("records") == [vars(pair) for pair in pairs]
    _write(tmp_path / "leaks.csv", Leaks((), ()))
    nothing = read_leaks(tmp_path)
    assert isinstance(nothing, pd.DataFrame)
    assert nothing.empty


def test_leaks_that_are_damaged_are_named(tmp_path: Path) -> None:
    assert read_leaks(tmp_path) is None
    (tmp_path / "leaks.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match=r"leaks\.csv.*run train again"):
        read_leaks(tmp_path)
