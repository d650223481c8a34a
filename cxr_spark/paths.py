"""Folders of features, local or by URI: what is done to a ``pathlib.Path``, of either kind.

An object store has no folders and renames nothing: a folder is there where something lies under its
name, and is moved file by file. So whoever reads a folder that may be half there looks for the file
that is written last, a record whose name begins with '_'.
"""

from __future__ import annotations

import fnmatch
import functools
import os
import posixpath
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from cxr_spark.errors import UserError
from cxr_spark.files import UNUSABLE, without_secret
from cxr_spark.filesystems import (
    for_spark,
    is_remote,
    join,
    kind_of,
    locate,
    path_of,
    with_path,
)

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

# Requests to a store that wait at once.
THREADS = 16
# S3 copies no larger object by one request; it is read and written again.
MOST_AT_ONCE, BYTES_A_PART = 5 * 2**30, 2**26
COPY_S = 600.0  # for a copy to be there
# By what pyarrow calls them: they have no folders to make, and one would be an object of its own.
OBJECT_STORES = re.compile(r"\b(s3|gs|gcs|abfs|abfss|az)\b")

Value = TypeVar("Value")


class StoreError(OSError):
    """What a store said to a request, in one line."""


@contextmanager
def _telling(path: RemotePath) -> Iterator[None]:
    """Raise what goes wrong as one kind of error, whatever the file system: each has its own."""
    try:
        yield
    except (FileNotFoundError, StoreError):
        raise
    except Exception as error:
        told = " ".join(str(error).split()) or type(error).__name__
        raise StoreError(f"{without_secret(path.uri)}: {told[:400]}") from error


class Status(NamedTuple):
    """What is told of a file, by the names of ``os.stat_result``."""

    st_size: int


@functools.total_ordering
@dataclass(frozen=True)
class RemotePath:
    """A file or folder by its URI, with those methods of ``pathlib.Path`` that are used here.

    Every method asks the store, but ``stat`` of what ``glob`` or ``iterdir`` found.
    """

    uri: str
    _info: FileInfo | None = field(default=None, compare=False, repr=False)

    def __reduce__(self) -> tuple[type[RemotePath], tuple[str]]:
        """Be sent to other processes as the URI."""
        return RemotePath, (self.uri,)

    def __str__(self) -> str:
        """Return the URI."""
        return self.uri

    def __lt__(self, other: RemotePath) -> bool:
        """Compare URIs."""
        return self.uri < other.uri

    def __truediv__(self, relative: str) -> RemotePath:
        """Return what lies under this one."""
        return RemotePath(join(self.uri, relative))

    def joinpath(self, *parts: str) -> RemotePath:
        """Return what lies under this one, a folder for each part but the last."""
        return self / "/".join(parts)

    @property
    def name(self) -> str:
        """The last part of the path."""
        return posixpath.basename(path_of(self.uri))

    @property
    def suffix(self) -> str:
        """The name's, with its dot."""
        return posixpath.splitext(self.name)[1]

    @property
    def parent(self) -> RemotePath:
        """The folder that it lies in."""
        return RemotePath(with_path(self.uri, posixpath.dirname(path_of(self.uri))))

    def with_name(self, name: str) -> RemotePath:
        """Return another entry of the folder that it lies in."""
        return self.parent / name

    def relative_to(self, folder: RemotePath) -> PurePosixPath:
        """Return the path under a folder.

        Raises:
            ValueError: it does not lie there.
        """
        return PurePosixPath(path_of(self.uri)).relative_to(path_of(folder.uri))

    def exists(self) -> bool:
        """Return whether it is a file, or a folder with something in it."""
        from pyarrow.fs import FileType

        return bool(self._ask().type != FileType.NotFound)

    def is_dir(self) -> bool:
        """Return whether it is a folder with something in it."""
        from pyarrow.fs import FileType

        return bool(self._ask().type == FileType.Directory)

    def is_symlink(self) -> bool:
        """Return False: stores have no links."""
        return False

    def stat(self) -> Status:
        """Return the size of a file, in bytes.

        Raises:
            FileNotFoundError: it is none.
        """
        info = self._info or self._ask()
        if not info.is_file:
            raise FileNotFoundError(f"no such file: {self.uri}")
        return Status(info.size)

    def iterdir(self) -> Iterator[RemotePath]:
        """Yield what lies in a folder, by name; nothing where there is no such folder."""
        yield from _listed(self, recursive=False)

    def glob(self, pattern: str) -> Iterator[RemotePath]:
        """Yield what lies under a folder by a pattern for each level, in order of the names."""
        first, _, rest = pattern.partition("/")
        for entry in self.iterdir():
            if not fnmatch.fnmatchcase(entry.name, first):
                continue
            if not rest:
                yield entry
            elif entry._info is not None and not entry._info.is_file:
                yield from entry.glob(rest)

    def rglob(self, pattern: str) -> Iterator[RemotePath]:
        """Yield all that lies under a folder, on any level, and has a name of a pattern."""
        found = _listed(self, recursive=True)
        return (entry for entry in found if fnmatch.fnmatchcase(entry.name, pattern))

    def mkdir(self, *, parents: bool = False, exist_ok: bool = False) -> None:
        """Do nothing: a folder is there once something lies in it."""

    def rmdir(self) -> None:
        """Remove a folder, where the file system has it although nothing lies in it."""
        files, path = locate(self.uri)
        if files.type_name == "s3":  # which has none, and would write an object for the one above
            return
        with _telling(self):
            if self.is_dir() and not any(self.iterdir()):
                files.delete_dir(path)

    def unlink(self, *, missing_ok: bool = False) -> None:
        """Remove a file."""
        if missing_ok and not self.exists():
            return
        files, path = locate(self.uri)
        with _telling(self):
            files.delete_file(path)

    def open(self, mode: str = "rb") -> Any:
        """Open a file to be read, its bytes; ``mode`` is 'rb'."""
        if mode != "rb":
            raise ValueError(f"expected the mode 'rb', received {mode!r}")
        files, path = locate(self.uri)
        with _telling(self):
            return files.open_input_file(path)

    def read_bytes(self) -> bytes:
        """Return a file's bytes."""
        with _telling(self), self.open() as file:
            return bytes(file.read())

    def read_text(self, encoding: str = "utf-8") -> str:
        """Return a file's text."""
        return self.read_bytes().decode(encoding)

    def write_bytes(self, content: bytes) -> int:
        """Write a file; on an object store it is there whole or not at all."""
        with _telling(self):
            files, _ = locate(self.uri)
            with files.open_output_stream(_with_parent(self)) as file:
                file.write(content)
        return len(content)

    def replace_by(self, content: bytes) -> None:
        """Write a file as ``write_bytes`` does; on HDFS beside first, then in its place."""
        files, path = locate(self.uri)
        if files.type_name != "hdfs":
            self.write_bytes(content)
            return
        beside = self.with_name(f"_{self.name}.{uuid.uuid4().hex}")
        beside.write_bytes(content)
        with _telling(self):
            if self.exists():
                files.delete_file(path)
            files.move(locate(beside.uri)[1], path)

    def rename(self, target: RemotePath) -> RemotePath:
        """Move a file or folder; ``copy_tree`` says what is there meanwhile, but on HDFS."""
        if moves_at_once(self):
            files, path = locate(self.uri)
            with _telling(self):
                if target.exists():  # it would be moved into it
                    raise StoreError(f"{target} is there already")
                files.move(path, _with_parent(target))
        else:
            copy_tree(self, target)
            remove_tree(self)
        return target

    def _ask(self) -> FileInfo:
        with _telling(self):
            files, path = locate(self.uri)
            return files.get_file_info(path)


# A folder or file of features.
AnyPath = Path | RemotePath


def as_path(text: str | AnyPath) -> AnyPath:
    """Return a path or URI, as ``files.storage_root`` passes it, as a path."""
    if isinstance(text, RemotePath):
        return text
    return RemotePath(join(str(text), "")) if is_remote(text) else Path(text)


def check_remote_folder(path: RemotePath, flag: str) -> None:
    """Refuse an output folder that is a file, or whose file system cannot be had; write nothing.

    Raises:
        UserError: says which it is, and the flag to change.
    """
    from pyarrow.fs import FileType

    if bad := sorted(set(path_of(path.uri)) & set(UNUSABLE)):
        raise UserError(
            f"Expected a folder under --{flag} whose path has none of {UNUSABLE}, which Spark "
            f"takes for patterns. Received: {path} (has {' '.join(bad)})"
        )
    if kind_of(path.uri, flag) == FileType.File:
        raise UserError(f"Expected a folder under --{flag}. Received: {path} (a file)")


def absolute(path: AnyPath) -> AnyPath:
    """Return a path as it is called from any folder."""
    return Path(os.path.abspath(path)) if isinstance(path, Path) else path


def location(path: AnyPath) -> str:
    """Return a path as Spark and petastorm take it: a URI, nothing encoded."""
    if isinstance(path, RemotePath):
        return for_spark(path.uri)
    return "file://" + os.path.abspath(path)


def entries(folder: AnyPath, pattern: str = "*") -> list[AnyPath]:
    """Return what ``glob`` finds in a folder, sorted."""
    return sorted(folder.glob(pattern), key=str)


def below(path: AnyPath, folder: AnyPath) -> str:
    """Return the path of what lies in a folder, under that folder."""
    return str(path.relative_to(folder))  # type: ignore[arg-type]  # both are of one kind


def move(source: AnyPath, target: AnyPath) -> None:
    """Rename a file or folder, of the same file system."""
    source.rename(target)  # type: ignore[arg-type]  # both are of one kind


def moves_at_once(path: AnyPath) -> bool:
    """Return whether a folder is renamed as a whole, or not at all, where a path lies."""
    return isinstance(path, Path) or locate(path.uri)[0].type_name == "hdfs"


def remove_tree(path: AnyPath, *, ignore_errors: bool = False) -> None:
    """Remove a folder and all in it, or a remote file.

    Raises:
        OSError: it cannot be removed, or is local and not there.
    """
    if isinstance(path, Path):
        shutil.rmtree(path, ignore_errors=ignore_errors)
        return
    try:
        with _telling(path):
            files, where = locate(path.uri)
            if path.is_dir():
                files.delete_dir(where)
            elif path.exists():
                files.delete_file(where)
    except OSError:
        if not ignore_errors:
            raise


def copy_tree(source: RemotePath, target: RemotePath) -> None:
    """Copy a file, or all that lies in a folder: what begins with '_' last, so a record is last.

    What lies in the target stays, but for files of the same names.
    """
    if not source.is_dir():
        _copy_file(source, target)
        return
    below = [e for e in _listed(source, recursive=True) if e._info is not None and e._info.is_file]
    pairs = [(e, target / str(e.relative_to(source))) for e in below]

    with ThreadPoolExecutor(THREADS) as pool:
        data = [pair for pair in pairs if not pair[0].name.startswith("_")]
        list(pool.map(lambda pair: _copy_file(*pair), data))
    for pair in pairs:
        if pair[0].name.startswith("_"):
            _copy_file(*pair)


def _copy_file(source: RemotePath, target: RemotePath) -> None:
    """Copy a file within its store, and wait until all of it is there.

    Raises:
        StoreError: it is not.
    """
    n_bytes = source.stat().st_size
    with _telling(source):
        files, path = locate(source.uri)
        where = _with_parent(target)
        if files.type_name == "s3" and n_bytes > MOST_AT_ONCE:
            with files.open_input_stream(path) as read, files.open_output_stream(where) as written:
                while part := read.read(BYTES_A_PART):
                    written.write(part)
        else:
            files.copy_file(path, where)
    deadline = time.monotonic() + COPY_S  # Azure's may go on after the answer
    while (found := files.get_file_info(where).size) != n_bytes:
        if time.monotonic() > deadline:
            raise StoreError(f"{target} has {found} bytes after it was copied, not {n_bytes}")
        time.sleep(1)


def settle(source: AnyPath, target: AnyPath) -> None:
    """Have a file or folder where it belongs; in an object store it stays where it was as well."""
    if moves_at_once(source):
        move(source, target)
    else:
        assert isinstance(source, RemotePath)
        assert isinstance(target, RemotePath)
        copy_tree(source, target)


def map_files(function: Callable[[Any], Value], files: Iterable[AnyPath]) -> Iterator[Value]:
    """Yield what a function returns of each file, in their order; remote ones wait together."""
    found = list(files)
    if not any(isinstance(file, RemotePath) for file in found):
        yield from map(function, found)
        return
    with ThreadPoolExecutor(THREADS) as pool:
        yield from pool.map(function, found)


def arrow_source(path: AnyPath) -> Any:
    """Return what ``pyarrow.parquet`` reads a file from."""
    return path if isinstance(path, Path) else path.open()


def arrow_folder(folder: AnyPath) -> tuple[Any, FileSystem | None]:
    """Return a folder as pyarrow's data sets take it: a path, and its file system if remote."""
    if isinstance(folder, Path):
        return folder, None
    files, path = locate(folder.uri)
    return path, files


def _with_parent(target: RemotePath) -> str:
    """Return a path to be written; where folders are real, the one that it lies in is made."""
    files, path = locate(target.uri)
    if not OBJECT_STORES.search(files.type_name):
        files.create_dir(posixpath.dirname(path), recursive=True)
    return path


def _listed(folder: RemotePath, *, recursive: bool) -> Iterator[RemotePath]:
    from pyarrow.fs import FileSelector

    files, path = locate(folder.uri)
    selector = FileSelector(path, allow_not_found=True, recursive=recursive)
    below = path.rstrip("/") + "/"
    with _telling(folder):
        infos = files.get_file_info(selector)
    for info in sorted(infos, key=lambda info: info.path):
        relative = info.path.removeprefix(below).strip("/")
        if relative:  # a store may hold an object with the folder's own name
            yield RemotePath(join(folder.uri, relative), info)
