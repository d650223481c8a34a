"""What an extraction has computed so far: shards, each there whole or not at all.

FEATURES/_parts/<fingerprint>[-maps]/
  <shard>/part-*.parquet        rows of features
  <shard>/_shard.json           the images of the shard that could not be used
  _finish.json, _errors/        while it is moved into its place: see ``finish``

A shard becomes part of an extraction by the one rename of its folder. The images of a shard are
those that it holds rows or failures of: whatever is not there yet is still to be computed.
"""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from cxr_spark.errors import UserError
from cxr_spark.extraction.store import (
    ExtractionRecord,
    StoredFile,
    parquet_files,
    parse_record,
    record_content,
    write_record,
)
from cxr_spark.files import write_json
from cxr_spark.paths import (
    AnyPath,
    RemotePath,
    StoreError,
    arrow_source,
    below,
    entries,
    map_files,
    move,
    moves_at_once,
    remove_tree,
    settle,
)

log = logging.getLogger(__name__)

PARTS = "_parts"
_SHARD_NAME = "_shard.json"
_FINISH_NAME = "_finish.json"
_ERRORS = "_errors"

Failure = tuple[str, str, int, str, str]  # in the order of ERROR_COLUMNS


@dataclass(frozen=True)
class Shard:
    """A shard that has been committed.

    Attributes:
        folder: of its files.
        failures: its images that could not be used.
        replaces: names of files of the finished data set whose rows it holds, as far as they stay.
    """

    folder: AnyPath
    failures: tuple[Failure, ...]
    replaces: tuple[str, ...] = ()

    @property
    def files(self) -> list[AnyPath]:
        """Its Parquet files."""
        return parquet_files(self.folder)


def parts_of(features: AnyPath, fingerprint: str, *, feature_maps: bool) -> AnyPath:
    """Return the folder of an unfinished extraction; with maps it is another than without."""
    return features / PARTS / f"{fingerprint}{'-maps' if feature_maps else ''}"


def commit_shard(
    parts: AnyPath,
    name: str,
    staged: AnyPath,
    failures: Sequence[Failure],
    replaces: Sequence[str] = (),
) -> Shard:
    """Make a shard part of an extraction.

    Args:
        parts: the extraction's folder.
        name: of the shard, new.
        staged: where Spark wrote it, on the same file system; missing where it has no rows.
        failures: its images that could not be used.
        replaces: as in ``Shard``.
    """
    staged.mkdir(parents=True, exist_ok=True)
    sizes = {file.name: file.stat().st_size for file in parquet_files(staged)}
    content = {"failures": failures, "files": sizes, "replaces": list(replaces)}
    write_json(staged / _SHARD_NAME, content)
    parts.mkdir(parents=True, exist_ok=True)
    move(staged, parts / name)
    return Shard(parts / name, tuple(failures), tuple(replaces))


def read_shards(parts: AnyPath) -> list[Shard]:
    """Return what an extraction has computed; a damaged shard is removed, to be computed again."""
    shards = []
    for file in entries(parts, f"*/{_SHARD_NAME}"):
        try:
            content = json.loads(file.read_text(encoding="utf-8"))
            failures = tuple((i, p, int(n), s, e) for i, p, n, s, e in content["failures"])
            shard = Shard(file.parent, failures, tuple(content["replaces"]))
            whole = content["files"] == {f.name: f.stat().st_size for f in shard.files}
            list(map_files(_footer, shard.files))
        except (FileNotFoundError, ValueError, KeyError, TypeError, pa.ArrowException):
            whole = False  # any other error may pass
        if whole:
            shards.append(shard)
        else:
            log.warning("%s is damaged: its images are computed again", file.parent)
            remove_tree(file.parent)
    return shards


def finish(
    features: AnyPath,
    parts: AnyPath,
    staged_errors: AnyPath,
    record: ExtractionRecord,
    *,
    kept: Iterable[str] = (),
) -> ExtractionRecord:
    """Make an extraction's shards its data set.

    The intention is written first; whatever of it is left undone, ``recover`` does.

    Args:
        features: the features folder.
        parts: holds the Parquet files, in folders or not, and nothing else that is wanted.
        staged_errors: the folder of the errors table, on the same file system.
        record: of the extraction; its ``files`` are filled in here.
        kept: names of the data set's present files that stay; others go.

    Returns:
        The record with its files.

    Raises:
        RuntimeError: rows and errors do not add up to the images found, or to the files' rows.
    """
    parts.mkdir(parents=True, exist_ok=True)
    moves = {
        below(file, parts): below(file, parts).replace("/", "-")
        # A folder without its record is one whose removal was stopped.
        for folder in (parts, *(record.parent for record in entries(parts, f"*/{_SHARD_NAME}")))
        for file in parquet_files(folder)
    }
    place = features / record.fingerprint
    files = {name: place / name for name in kept}
    files |= {name: parts / source for source, name in moves.items()}
    names = sorted(files)
    stored = map_files(_stored, (files[name] for name in names))
    record = dataclasses.replace(record, files=dict(zip(names, stored, strict=True)))
    n_stored = sum(file.n_rows for file in record.files.values())
    if record.n_rows + record.n_errors != record.n_images or n_stored != record.n_rows:
        raise RuntimeError(
            f"{record.describe()}: {record.n_images} images in, but {record.n_rows} rows "
            f"({n_stored} in its files) and {record.n_errors} errors"
        )
    if (parts / _ERRORS).exists():
        remove_tree(parts / _ERRORS)
    move(staged_errors, parts / _ERRORS)
    write_json(parts / _FINISH_NAME, {"record": record_content(record), "moves": moves})
    _roll_forward(features, parts, record, moves)
    return record


def recover(features: AnyPath) -> None:
    """Finish what a killed run had begun to move into its place.

    Raises:
        UserError: what it left there has been changed.
    """
    for file in entries(features / PARTS, f"*/{_FINISH_NAME}"):
        try:
            text = file.read_text(encoding="utf-8")
            if isinstance(file, RemotePath) and not text.rstrip().endswith("}"):
                # Not every store writes a file whole or not at all; nothing was moved yet.
                log.warning("%s was not written to its end: the extraction goes on before it", file)
                file.unlink()
                continue
            content = json.loads(text)
            record, moves = parse_record(content["record"]), dict(content["moves"])
            if not all(_is_move(file.parent, *move) for move in moves.items()):
                record = None
        except StoreError:
            raise
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            record = None
        if record is None:
            raise UserError(
                f"Expected what a stopped run had begun. Received: {file}, which is damaged. "
                "Extract again with --overwrite."
            )
        log.info("finishing the extraction %s, which was stopped at its end", record.fingerprint)
        _roll_forward(features, file.parent, record, moves)


def _is_move(parts: AnyPath, source: str, name: str) -> bool:
    """Return whether a file goes from a folder of parts into the data set, and nothing elsewhere.

    A features folder may be anybody's, and this is the one file of it that says what to move.
    """
    way = Path(source).parts
    places = [parts.joinpath(*way[: i + 1]) for i in range(len(way))]
    return (
        1 <= len(way) <= 2
        and ".." not in way
        and not Path(source).is_absolute()
        and source.endswith(".parquet")
        and name == source.replace("/", "-")
        and not any(place.is_symlink() for place in (parts.parent, parts, *places))
    )


def _roll_forward(
    features: AnyPath, parts: AnyPath, record: ExtractionRecord, moves: dict[str, str]
) -> None:
    """Do what is still to be done of a finish; each step may have been done before."""
    place = features / record.fingerprint
    place.mkdir(exist_ok=True)

    def place_file(source: AnyPath) -> None:
        if source.exists():  # or it was moved by the run that was stopped
            settle(source, place / moves[below(source, parts)])

    list(map_files(place_file, [parts / source for source in moves]))
    if (parts / _ERRORS).exists():
        errors = features / "errors" / f"fingerprint={record.fingerprint}"
        if errors.exists():
            remove_tree(errors)
        errors.parent.mkdir(exist_ok=True)
        settle(parts / _ERRORS, errors)
    write_record(place, record)
    for file in parquet_files(place):
        if file.name not in record.files:
            file.unlink()
    # Last of all goes what says that there is something to do.
    for path in parts.iterdir():
        if path.is_dir() and path.name != _ERRORS:
            remove_tree(path)
    if not moves_at_once(parts):
        for source in moves:  # those that lie in no folder
            (parts / source).unlink(missing_ok=True)
        # The errors are there as well as in their place: half of them would be taken for all.
        (parts / _FINISH_NAME).unlink()
    remove_tree(parts)
    if record.feature_map_shape is not None:  # an extraction without maps has nothing to add
        remove_tree(features / PARTS / record.fingerprint, ignore_errors=True)
    if not any(parts.parent.iterdir()):
        parts.parent.rmdir()


def _stored(file: AnyPath) -> StoredFile:
    try:
        return StoredFile(file.stat().st_size, _footer(file).num_rows)
    except StoreError:
        raise
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"Expected Parquet in {file}. Received: {type(error).__name__}: {error}. "
            "Extract again with --overwrite."
        ) from error


def _footer(file: AnyPath) -> pq.FileMetaData:
    return pq.read_metadata(arrow_source(file))


def has_parts(features: AnyPath) -> bool:
    """Return whether a features folder holds shards of an unfinished extraction."""
    return any((features / PARTS).glob(f"*/*/{_SHARD_NAME}"))


def clear_parts(features: AnyPath, fingerprint: str | None = None) -> None:
    """Remove the unfinished extraction of a fingerprint, or all of them."""
    for parts in (features / PARTS).glob(f"{fingerprint or ''}*"):
        remove_tree(parts)
    if (features / PARTS).is_dir() and not any((features / PARTS).iterdir()):
        (features / PARTS).rmdir()
