"""Our jobs as users start them, with the master and settings of this very spark-submit."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cxr_spark.backbones import BACKBONES, keras_home, weights_file
from cxr_spark.benchmark.peers import run_process
from cxr_spark.benchmark.rows import MeasurementError
from cxr_spark.benchmark.settings import IMAGE_SIZE, N_WARM_UP, Settings
from cxr_spark.errors import UserError
from cxr_spark.session_checks import is_local

# What an application has for itself; the next one makes its own.
_OWN = ("spark.app.", "spark.submit.", "spark.jars", "spark.files")


@dataclass(frozen=True)
class Submitter:
    """Starts jobs by spark-submit.

    Attributes:
        jobs: the folder of the jobs.
        properties: a file of Spark's settings.
        images: the image root.
        weights: as the jobs take them.
        folder: where outputs go, each job's removed when it has ended.
        precision: as the jobs take it.
    """

    jobs: Path
    properties: Path
    images: Path
    weights: str
    folder: Path
    precision: str = "float32"

    def extract(
        self,
        backbones: Sequence[str],
        n_images: int,
        *,
        feature_maps: bool = False,
        master: str | None = None,
        core: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> float:
        """Extract the features of some images, and remove them.

        Args:
            backbones: in one pass.
            n_images: an even sample of so many.
            feature_maps: whether to store maps as well.
            master: another than that of the properties.
            core: the only one that the process and its children may use.
            environment: to be added.

        Returns:
            The seconds of the whole process.
        """
        experiment = {
            "dataset": {"adapter": "folder"}, "task": "findings", "split": {"unit": "image"},
            "backbones": list(backbones), "feature_maps": feature_maps,
        }  # fmt: skip
        options = [] if master is None else ["--master", master]
        return self._submit(
            "extract.py", "--features", n_images, experiment, options, core, environment
        )

    def extract_first(self, backbones: Sequence[str], n_images: int) -> float:
        """Extract as ``extract`` does, with a cache in which no backbone is frozen yet."""
        with tempfile.TemporaryDirectory(dir=self.folder) as cache:
            return self.extract(backbones, n_images, environment={"XDG_CACHE_HOME": cache})

    def grid(self, backbone: str, n_images: int) -> float:
        """Extract, train the paper's two heads and report; return the seconds of the whole."""
        experiment = {
            "split": {"unit": "image"}, "heads": ["gap", "fc1024"], "seeds": [0],
            "backbones": [backbone],
        }  # fmt: skip
        return self._submit("grid.py", "--run", n_images, experiment)

    def _submit(
        self,
        job: str,
        flag: str,
        n_images: int,
        experiment: dict[str, Any],
        options: Sequence[str] = (),
        core: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> float:
        config, out = self.folder / "experiment.yaml", self.folder / "out"
        content = {**experiment, "image_size": list(IMAGE_SIZE)}
        config.write_text(json.dumps(content), encoding="utf-8")  # JSON is YAML
        command = [
            _spark_submit(), "--properties-file", str(self.properties), *options,
            str(self.jobs / job), "--config", str(config), "--images", str(self.images),
            flag, str(out), "--weights", self.weights, "--limit", str(n_images),
            "--precision", self.precision,
        ]  # fmt: skip
        try:
            return run_process(command, environment, core=core)[0]
        finally:
            shutil.rmtree(out, ignore_errors=True)


@dataclass(frozen=True)
class Trial:
    """Our extraction on some images, to be measured in one way or another.

    Attributes:
        submitter: starts our job.
        backbones: in one pass.
        images: their name in the table.
        n_images: all of them.
        repeat: how often each measurement is taken.
    """

    submitter: Submitter
    backbones: tuple[str, ...]
    images: str
    n_images: int
    repeat: int

    @property
    def name(self) -> str:
        """The backbones and the images, as the table names them."""
        return f"{', '.join(self.backbones)}, {self.images}"

    def extract(self, n_images: int, **how: Any) -> float:
        """Extract so many of the images as ``Submitter.extract`` does; return its seconds."""
        return self.submitter.extract(self.backbones, n_images, **how)

    def warm_up(self, **how: Any) -> None:
        """Extract few images first: backbones are frozen once for all later processes."""
        self.extract(min(N_WARM_UP, self.n_images), **how)


def check_scratch() -> None:
    """See to it that executors find what the benchmark draws and where it extracts to.

    Raises:
        UserError: they are of a cluster, and nothing says which folder is there on all nodes.
    """
    from pyspark import SparkConf, SparkContext

    SparkContext._ensure_initialized()
    master = SparkConf().get("spark.master") or "local[*]"
    named = os.environ.get("TMPDIR", "")
    # Python passes over a TMPDIR that it cannot write to.
    if not is_local(master) and (not named or Path(named) != Path(tempfile.gettempdir())):
        raise UserError(
            f"Expected TMPDIR to be a folder that every node of {master} has mounted: images and "
            f"features lie there meanwhile. Received: {named or 'none'}"
        )


def write_properties(file: Path) -> str:
    """Write the settings that spark-submit gave this driver, before a session adds its own.

    Returns:
        The master.
    """
    from pyspark import SparkConf, SparkContext

    SparkContext._ensure_initialized()
    settings = {key: value for key, value in SparkConf().getAll() if not key.startswith(_OWN)}
    settings.setdefault("spark.master", "local[*]")
    lines = (f"{key} {value}".replace("\\", "\\\\") for key, value in sorted(settings.items()))
    file.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return settings["spark.master"]


def peer_weights(settings: Settings, backbone: str) -> str:
    """Return the weights as peers take them: 'random' or a file.

    Raises:
        MeasurementError: Keras' download of ImageNet weights is not in its cache.
    """
    if settings.weights == "random":
        return "random"
    file = weights_file(backbone, settings.weights)
    if file is None:
        raise MeasurementError(
            f"peers take a weights file, and {BACKBONES[backbone].keras_file} is not in "
            f"{keras_home()}: extract once with --weights imagenet, or give --weights DIR"
        )
    return str(file)


def _spark_submit() -> str:
    import pyspark

    home = os.environ.get("SPARK_HOME") or Path(pyspark.__file__).parent
    return str(Path(home) / "bin" / "spark-submit")
