from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cxr_spark.backbones import (
    BACKBONES,
    find_weights,
    load_backbone,
    weights_digest,
)
from cxr_spark.errors import UserError
from tests.conftest import ROOT

SIZE = (80, 96)


def test_random_weights_are_the_same_every_time_and_digests_tell_weights_apart() -> None:
    first, again = (load_backbone("MobileNetV3Small", SIZE, "random") for _ in range(2))
    assert weights_digest(first) == weights_digest(again)
    again.weights[0].assign(again.weights[0] + 1e-3)
    assert weights_digest(first) != weights_digest(again)


def test_a_folder_may_hold_our_names_or_those_of_keras_cache(tmp_path: Path) -> None:
    model = load_backbone("MobileNetV3Small", SIZE, "random")
    model.weights[0].assign(model.weights[0] + 1)
    digest = weights_digest(model)
    ours, cache = tmp_path / "ours", tmp_path / "cache"
    ours.mkdir()
    cache.mkdir()
    model.save_weights(ours / "MobileNetV3Small.weights.h5")
    save_legacy_weights(model, cache / BACKBONES["MobileNetV3Small"].keras_file)
    for folder in (ours, cache):
        assert weights_digest(load_backbone("MobileNetV3Small", SIZE, str(folder))) == digest


def save_legacy_weights(model: object, file: Path) -> None:
    """Write weights in the format of the files that Keras downloads."""
    import h5py
    from keras.src.legacy.saving import legacy_h5_format

    with h5py.File(file, "w") as group:
        legacy_h5_format.save_weights_to_hdf5_group(group, model)


def test_weights_that_are_missing_or_of_another_backbone_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="MobileNetV3Small.weights.h5 or weights_mobilenet_v3"):
        find_weights("MobileNetV3Small", str(tmp_path))
    with pytest.raises(UserError, match="imagenet, random or a folder that exists"):
        find_weights("MobileNetV3Small", str(tmp_path / "none"))
    source = tmp_path / "MobileNetV3Small.weights.h5"
    load_backbone("MobileNetV3Small", SIZE, "random").save_weights(source)
    shutil.copy(source, tmp_path / "ResNet50.weights.h5")
    with pytest.raises(UserError, match="Expected the weights of ResNet50.*does not fit"):
        load_backbone("ResNet50", SIZE, str(tmp_path))
    (tmp_path / "Xception.weights.h5").write_bytes(b"no HDF5")
    with pytest.raises(UserError, match="Expected the weights of Xception.*does not fit"):
        load_backbone("Xception", SIZE, str(tmp_path))
    with pytest.raises(UserError, match="Did you mean 'ResNet50'"):
        load_backbone("ResNet5O", SIZE, "random")


DOWNLOAD = """
import hashlib, os, sys
from pathlib import Path
sys.path.insert(0, {root!r})
from keras.src.utils import file_utils
from cxr_spark.backbones import BACKBONES, load_backbone, weights_digest
from cxr_spark.errors import UserError
from tests.test_backbones import SIZE, save_legacy_weights

server, files = sys.argv[1], Path(sys.argv[2])
real = file_utils.get_file

def redirected(fname, origin, **options):
    name = origin.rpartition("/")[2]
    file = files / name
    if file.exists():  # Keras checks what it downloaded, here against the generated file
        options["file_hash"] = hashlib.md5(file.read_bytes()).hexdigest()
    return real(fname, server + name, **options)

file_utils.get_file = redirected
for name in {names!r}:
    backbone = BACKBONES[name]
    model = load_backbone(name, SIZE, "random")
    model.weights[0].assign(model.weights[0] + 1)
    save_legacy_weights(model, files / backbone.keras_file)
    assert weights_digest(load_backbone(name, SIZE, "imagenet")) == weights_digest(model), name
    print("downloaded", name)
    (files / backbone.keras_file).unlink()
(Path(os.environ["KERAS_HOME"]) / "models" / BACKBONES["ResNet50"].keras_file).unlink()
try:
    load_backbone("ResNet50", SIZE, "imagenet")
except UserError as error:
    print(error)
"""


def test_imagenet_weights_are_downloaded_and_a_missing_network_is_told(tmp_path: Path) -> None:
    """Keras' own download, from a server on this machine: of every backbone with CXR_FULL."""
    names = list(BACKBONES) if "CXR_FULL" in os.environ else ["ResNet50", "MobileNetV3Small"]
    files = tmp_path / "files"
    files.mkdir()
    with subprocess.Popen(
        [sys.executable, "-u", "-m", "http.server", "0", "--bind", "127.0.0.1", "-d", str(files)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as server:
        try:
            assert server.stdout is not None
            port = server.stdout.readline().split("port ")[1].split()[0]
            done = subprocess.run(
                [
                    sys.executable,
                    "-c",
                    DOWNLOAD.format(root=str(ROOT), names=names),
                    f"http://127.0.0.1:{port}/",
                    files,
                ],
                env={**os.environ, "KERAS_HOME": str(tmp_path / "keras")},
                capture_output=True,
                text=True,
                check=False,
                timeout=300,
            )
        finally:
            server.terminate()
    assert done.returncode == 0, done.stderr[-2000:]
    for name in names:
        assert f"downloaded {name}" in done.stdout
    last = done.stdout.strip().splitlines()[-1]
    assert last.startswith("Expected to download the ImageNet weights of ResNet50")
    assert "--weights DIR" in last
    assert "--weights random" in last
