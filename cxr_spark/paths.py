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
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from cxr_spark.errors import UserError
from cxr_spark.files import UNUSABLE
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

Value = TypeVar("Value")


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
        if self.is_dir() and not any(self.iterdir()):
            files.delete_dir(path)

    def unlink(self, *, missing_ok: bool = False) -> None:
        """Remove a file."""
        if missing_ok and not self.exists():
            return
        files, path = locate(self.uri)
        files.delete_file(path)

    def open(self, mode: str = "rb") -> Any:
        """Open a file to be read, its bytes; ``mode`` is 'rb'."""
        if mode != "rb":
            raise ValueError(f"expected the mode 'rb', received {mode!r}")
        files, path = locate(self.uri)
        return files.open_input_file(path)

    def read_bytes(self) -> bytes:
        """Return a file's bytes."""
        with self.open() as file:
            return bytes(file.read())

    def read_text(self, encoding: str = "utf-8") -> str:
        """Return a file's text."""
        return self.read_bytes().decode(encoding)

    def write_bytes(self, content: bytes) -> int:
        """Write a file; on an object store it is there whole or not at all."""
        files, _ = locate(self.uri)
        with files.open_output_stream(_with_parent(self)) as file:
            file.write(content)
        return len(content)

    def rename(self, target: RemotePath) -> RemotePath:
        """Move a file or folder; ``copy_tree`` says what is there meanwhile, but on HDFS."""
        if moves_at_once(self):
            files, path = locate(self.uri)
            where = _with_parent(target)
            files.move(path, where)
        else:
            copy_tree(self, target)
            remove_tree(self)
        return target

    def _ask(self) -> FileInfo:
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
    files, where = locate(path.uri)
    try:
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
    files, path = locate(source.uri)
    if not source.is_dir():
        files.copy_file(path, _with_parent(target))
        return
    below = [e for e in _listed(source, recursive=True) if e._info is not None and e._info.is_file]
    pairs = [(e, target / str(e.relative_to(source))) for e in below]

    def copy(pair: tuple[RemotePath, RemotePath]) -> None:
        files.copy_file(locate(pair[0].uri)[1], _with_parent(pair[1]))

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(copy, [pair for pair in pairs if not pair[0].name.startswith("_")]))
    for pair in pairs:
        if pair[0].name.startswith("_"):
            copy(pair)


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
    if files.type_name not in ("s3", "gcs"):
        files.create_dir(posixpath.dirname(path), recursive=True)
    return path


def _listed(folder: RemotePath, *, recursive: bool) -> Iterator[RemotePath]:
    from pyarrow.fs import FileSelector

    files, path = locate(folder.uri)
    selector = FileSelector(path, allow_not_found=True, recursive=recursive)
    below = path.rstrip("/") + "/"
    for info in sorted(files.get_file_info(selector), key=lambda info: info.path):
        relative = info.path.removeprefix(below).strip("/")
        if relative:  # a store may hold an object with the folder's own name
            yield RemotePath(join(folder.uri, relative), info)
