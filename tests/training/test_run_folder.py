from __future__ import annotations

import os
import time
from pathlib import Path

from cxr_spark.training.run_folder import clear_unfinished


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
