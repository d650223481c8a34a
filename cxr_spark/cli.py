"""The flags of the jobs, and how a job ends. Imports nothing heavy: --help answers at once."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import gc
import logging
import os
import shlex
import signal
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from cxr_spark.errors import RunFailed, UserError, nearest, without_credentials
from cxr_spark.files import local_path, root, without_secret
from cxr_spark.paths import StoreError

if TYPE_CHECKING:
    from cxr_spark.config import Experiment


# What the command line of Spark's JVM has before the words that spark-submit was given.
_SUBMIT = "org.apache.spark.deploy.SparkSubmit"


class _Parser(argparse.ArgumentParser):
    """Answers a wrong flag with one line, the nearest flag in it."""

    def error(self, message: str) -> NoReturn:
        flags = [option for action in self._actions for option in action.option_strings]
        hint = ""
        if message.startswith("unrecognized arguments: "):
            hint = nearest(message.split()[2].split("=")[0], flags)
        line = f"{self.prog}: error: {without_credentials(message)}.{hint} See --help."
        self.exit(2, f"{line}\n")


def _names(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise argparse.ArgumentTypeError(f"expected names separated by commas, received {text!r}")
    return names


def _numbers(text: str) -> list[int]:
    try:
        return [int(number) for number in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(
            f"expected whole numbers separated by commas, received {text!r}"
        ) from None


# Every flag of every job; --config apart, each replaces the field of its name in the YAML file.
_FLAGS: dict[str, dict[str, Any]] = {
    "config": {
        "metavar": "FILE",
        "help": "required: the experiment, a YAML file such as conf/paper.yaml",
    },
    "images": {
        "metavar": "DIR",
        "help": "the folder of images, at the same path on driver and executors; or its URI, as "
        "s3a://BUCKET/FOLDER",
    },
    "features": {
        "metavar": "DIR",
        "help": "the features folder, at the same path on driver and executors; or its URI, as "
        "s3a://BUCKET/FOLDER",
    },
    "run": {
        "metavar": "DIR",
        "help": "the run folder: heads, predictions, results.csv, report.html",
    },
    "mlflow": {
        "metavar": "URI",
        "help": "log the run to MLflow: http://HOST:5000 or sqlite:///FILE.db",
    },
    "weights": {
        "metavar": "imagenet|random|DIR",
        "help": "Keras' download, seeded random weights, or a folder of weights files",
    },
    "backbones": {
        "metavar": "A,B",
        "type": _names,
        "help": "which backbones, by their names in keras.applications",
    },
    "precision": {
        "metavar": "float32|float16|bfloat16",
        "help": "what backbones compute in; below float32 for GPUs, checked against float32",
    },
    "heads": {"metavar": "A,B", "type": _names, "help": "which heads"},
    "seeds": {
        "metavar": "0,1,2",
        "type": _numbers,
        "help": "seeds of the heads; the split has its own in the YAML",
    },
    "extraction": {
        "metavar": "FINGERPRINT",
        "type": _names,
        "help": "which extraction, where the features folder holds several of a backbone",
    },
    "feature-maps": {
        "action": "store_true",
        "default": None,
        "help": "store feature maps, which fc1024 takes",
    },
    "limit": {
        "metavar": "N",
        "type": int,
        "help": "use N images only, an even sample over the sorted paths",
    },
    "distribute-heads": {
        "action": "store_true",
        "default": None,
        "help": "train heads on executors, one configuration a task, in place of the driver",
    },
    "overwrite": {
        "action": "store_true",
        "default": None,
        "help": "start afresh where the output folder holds something else",
    },
    "refresh": {
        "action": "store_true",
        "default": None,
        "help": "compute images anew that have changed since, and drop those that are gone",
    },
    "max-error-fraction": {
        "metavar": "SHARE",
        "type": float,
        "help": "end where more images than this share, and than ten, cannot be used; 0.01",
    },
    "repeat": {
        "metavar": "N",
        "type": int,
        "help": "take each measurement N times, by default 3",
    },
    "peers": {
        "metavar": "DIR",
        "help": "a folder of programs to compare with, each run in turn with ours",
    },
    "out": {"metavar": "FILE.json", "help": "where to store the rows; a plot goes beside"},
    "engine-only": {
        "action": "store_true",
        "default": None,
        "help": "measure the compute core alone, with neither Spark nor a JVM",
    },
    "sections": {
        "metavar": "A,B",
        "type": _names,
        "help": "of engine, extraction, training, reader (by default these), maps, cores, pass, "
        "growth, grid, peers",
    },
}


_FOLDERS = {"images", "features", "run", "out", "peers"}
_BY_URI = {"images", "features"}


def parse_flags(
    program: str,
    description: str,
    flags: Sequence[str],
    arguments: Sequence[str] | None = None,
    *,
    required: Sequence[str] = (),
    meanings: Mapping[str, dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """Parse a job's flags and return the values given by field name; None where not given.

    Args:
        program: its name.
        description: what it does.
        flags: of ``_FLAGS``.
        arguments: by default those of this process.
        required: flags that must be given, besides --config or else --run.
        meanings: metavar and help of flags that mean another thing to this job.
    """
    parser = _Parser(prog=program, description=description, allow_abbrev=False)
    for flag in flags:
        options = {**_FLAGS[flag], **(meanings or {}).get(flag, {})}
        parser.add_argument(f"--{flag}", **options)
    given = vars(parser.parse_args(arguments))
    for flag in _FOLDERS & given.keys():
        if given[flag] is not None:
            given[flag] = _mounted(flag, given[flag])
    # Asked for last, so that a misspelt flag is named even where this one is missing.
    always = [flag for flag in ("config", "run") if flag in flags][:1]
    missing = [f"--{flag}" for flag in (*always, *required) if given[flag] is None]
    if missing:
        parser.error(f"the following arguments are required: {', '.join(missing)}")
    return given


def _mounted(flag: str, folder: str) -> str:
    try:
        return root(folder) if flag in _BY_URI else local_path(folder)
    except ValueError as error:
        told = f"Expected --{flag} to be {error}. Received: {without_secret(folder)}"
        raise UserError(told) from None


def read_experiment_flags(program: str, description: str, flags: Sequence[str]) -> Experiment:
    """Parse a job's flags, read its YAML file and return the experiment that both make."""
    given = parse_flags(program, description, flags)
    from cxr_spark.config import load_experiment

    return load_experiment(given.pop("config"), given)


def run_job(main: Callable[[], None], when_stopped: str | None = None) -> NoReturn:
    """Run a job and exit: with one line where it is a user's mistake, a failed run, or Ctrl-C.

    The status is 0 for success, 2 for a mistake, 1 for a run that failed, 130 for Ctrl-C.

    Args:
        main: parses and calls.
        when_stopped: what Ctrl-C leaves; by default, a run with which the same command goes on.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # executors may share the GPU
    # Not sys.stderr, which is set aside at moments in which TensorFlow speaks to it.
    stream = os.fdopen(os.dup(2), "w", buffering=1)
    logging.basicConfig(
        level=logging.ERROR, format="%(asctime)s %(message)s", datefmt="%H:%M:%S", stream=stream
    )
    logging.getLogger("cxr_spark").setLevel(logging.INFO)
    logging.getLogger("petastorm").setLevel(logging.CRITICAL)
    # py4j logs what it raises as well, by the root logger.
    logging.getLogger().addFilter(lambda told: told.msg != "Exception while sending command.")
    _tell_when_stopped(when_stopped)
    try:
        main()
    except UserError as error:
        print(f"{os.path.basename(sys.argv[0])}: error: {error}", file=sys.stderr)
        sys.exit(2)
    except (RunFailed, StoreError) as error:
        print(f"{os.path.basename(sys.argv[0])}: error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    gc.freeze()  # or the interpreter ends by a second's search through TensorFlow's objects
    sys.exit(0)


def _tell_when_stopped(left: str | None) -> None:
    """Say at once what Ctrl-C leaves: the JVM, which hands on what is said here, ends by it too."""
    line = (
        f"{os.path.basename(sys.argv[0])}: stopped; "
        f"{left or f'to go on where it was: {without_credentials(_command())}'}\n"
    )
    if left is None and "--overwrite" in sys.argv:
        line = line.rstrip() + " (with --overwrite again if nothing was computed yet)\n"

    def stop(*_: object) -> NoReturn:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.write(2, line.encode())
        raise KeyboardInterrupt

    signal.signal(signal.SIGINT, stop)


def _command() -> str:
    """Return the command that started this job, as a shell takes it, to go on with it."""
    return shlex.join(word for word in _words() if word != "--overwrite")


def _words() -> list[str]:
    """Return the words that started this job, those for spark-submit with them."""
    started_by = Path(f"/proc/{os.getppid()}/cmdline")
    with contextlib.suppress(OSError):
        words = [os.fsdecode(word) for word in started_by.read_bytes().split(b"\0")[:-1]]
        if _SUBMIT in words:
            return ["spark-submit", *words[words.index(_SUBMIT) + 1 :]]
    return [sys.executable, *sys.argv]


def told_command(words: Sequence[str] | None = None) -> str:
    """Return the command that started this job, as a shell takes it, to be kept with its results.

    Settings that look like secrets are named, and their values are not.

    Args:
        words: of the command; by default, those that started this process.
    """
    from cxr_spark.spark import REDACTED, SECRET

    told = []
    for word in _words() if words is None else words:
        key, has_value, _ = word.partition("=")
        if SECRET.search(word) and has_value:
            word = f"{key}={REDACTED}"
        elif SECRET.search(word) and "://" in word:
            word = REDACTED
        told.append(word)
    return shlex.join(told)


def share_heap() -> None:
    """Let all threads share one heap, where the C library is glibc.

    It gives threads heaps of their own, and what one thread makes and another frees, as batches of
    streamed features, leaves holes in all of them: a tenth of the memory, and more in every epoch.
    It must be told before threads start. MALLOC_ARENA_MAX in the environment says otherwise.
    """
    if "MALLOC_ARENA_MAX" in os.environ:
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(-8, 1)  # M_ARENA_MAX of glibc's malloc.h
