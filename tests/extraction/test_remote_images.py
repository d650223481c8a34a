"""Images on an S3-compatible server: their features, and a pack of them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from cxr_spark.dataset.phantoms import holds_phantoms
from cxr_spark.dataset.root import list_images, open_root
from cxr_spark.errors import UserError
from cxr_spark.packing import pack
from tests.conftest import S3
from tests.extraction.test_job import read, read_errors, run


def test_features_of_images_on_a_server_are_those_of_the_folder(
    spark, experiment, phantoms: Path, s3: S3, tmp_path: Path
) -> None:
    """Beside them lies a file that is no image."""
    root = s3.upload(phantoms)
    s3.write(root, "train/NORMAL/IM-9999-0001.jpeg", b"no image")
    (record,) = run(spark, experiment, root, tmp_path / "there")
    (of_folder,) = run(spark, experiment, phantoms, tmp_path / "here")
    assert (record.n_images, record.n_rows, record.n_errors) == (91, 90, 1)
    assert record.fingerprint == of_folder.fingerprint
    assert list(read_errors(tmp_path / "there", record)["stage"]) == ["decode"]
    there, here = read(tmp_path / "there", record), read(tmp_path / "here", of_folder)
    assert there["image_id"].tolist() == here["image_id"].tolist()
    assert there["path"].str.startswith("s3a://").all()
    one, two = np.stack(there["pooled"]), np.stack(here["pooled"])
    assert (np.linalg.norm(one - two, axis=1) <= 1e-5 * np.linalg.norm(two, axis=1)).all()
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "there").rglob("*.parquet")}
    s3.write(root, "train/NORMAL/IM-9999-0002.jpeg", open_root(phantoms)(here["image_id"][0]))
    (again,) = run(spark, experiment, root, tmp_path / "there")
    assert (again.n_images, again.n_rows) == (92, 91)
    kept = [p for p in before if p.parent.name == record.fingerprint]
    assert kept
    assert all(p.stat().st_mtime_ns == before[p] for p in kept)


def test_a_listing_that_fails_on_an_executor_is_one_line_and_nothing_is_kept(
    spark, experiment, s3: S3, tmp_path: Path
) -> None:
    """The driver looks only whether the root is there."""
    (tmp_path / "empty").mkdir()
    root = s3.upload(tmp_path / "empty")
    gone = root.replace("/root?", "/nothing/at/all?")
    with pytest.raises(UserError, match="Expected to list s3a://.*nothing/at/all"):
        run(spark, experiment, gone, tmp_path / "features")
    with pytest.raises(UserError, match="Expected to list s3a://.*nothing/at/all"):
        pack(spark, gone, tmp_path / "packed", limit=None, overwrite=False)
    assert not (tmp_path / "packed").exists()


def test_a_pack_of_images_on_a_server_has_their_bytes(
    spark, phantoms: Path, s3: S3, tmp_path: Path
) -> None:
    record = pack(spark, s3.upload(phantoms), tmp_path / "packed", limit=None, overwrite=False)
    assert holds_phantoms(tmp_path / "packed")
    assert (record.n_images, record.n_errors) == (90, 0)
    of_pack, of_folder = open_root(tmp_path / "packed"), open_root(phantoms)
    names = [image.image_id for image in list_images(str(phantoms))]
    assert [image.image_id for image in list_images(str(tmp_path / "packed"))] == names
    assert all(of_pack(name) == of_folder(name) for name in names)
