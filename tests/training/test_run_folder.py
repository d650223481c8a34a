from __future__ import annotations

import os
import time
from pathlib import Path

import pytest

from cxr_spark.training.run_folder import clear_run, clear_unfinished


def test_what_a_killed_run_was_writing_goes_and_what_is_being_written_stays(tmp_path: Path) -> None:
    for name in ("heads", "predictions"):
        (tmp_path / name).mkdir()
    killed, written = (tmp_path / "heads" / f"_a.keras.{i}.keras" for i in range(2))
    kept = tmp_path / "predictions" / "a.parquet"
    for file in (killed, written, kept):
        file.touch()
    for file in (killed, kept):
        os.utime(file, (time.time() - 3600,) * 2)
    clear_unfinished(tmp_path)
    assert sorted(tmp_path.glob("*/*")) == [written, kept]


def test_a_run_that_is_stopped_while_it_is_cleared_is_a_run_still(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "heads").mkdir()
    (tmp_path / "experiment.json").touch()

    def killed(folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("cxr_spark.training.run_folder.shutil.rmtree", killed)
        with pytest.raises(KeyboardInterrupt):
            clear_run(tmp_path)
    assert (tmp_path / "experiment.json").exists()
    clear_run(tmp_path)
    assert not list(tmp_path.iterdir())
