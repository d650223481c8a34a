"""A walk over an image root that misses nothing, not odd names, empty files or broken links."""

from __future__ import annotations

import errno
import os
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from cxr_spark.files import read_whole

# pandas' last nanosecond, in the year 2262; later times, of files with a wrong date, stand as it,
# and those before its negative, in the year 1677, as that.
LATEST_US = (2**63 - 1) // 1000

FILE_SCHEME = "file://"
IMAGE_SUFFIXES = (b".jpeg", b".jpg", b".png")


@dataclass(frozen=True)
class FoundImage:
    """One entry with an image's suffix.

    Attributes:
        image_id: path relative to the root, '/' separated; bytes that are not UTF-8 stand as
            ``\\xff``.
        path: the file's URI, percent-encoded, from which the exact name can be had back.
        length: size in bytes; -1 where it cannot be had, as of a dangling link.
        modified_us: time of the last modification, microseconds since 1970 UTC; 0 where unknown.
        problem: why this folder, of unknown content, could not be walked; empty for images.
    """

    image_id: str
    path: str
    length: int
    modified_us: int
    problem: str = ""


class Listed(NamedTuple):
    """A file as it was when it was listed; what has changed since is not what its row says.

    Attributes:
        path: of the file.
        length: in bytes.
        modified_us: time of its last modification, microseconds since 1970 UTC; None if unknown.
    """

    path: bytes
    length: int
    modified_us: int | None

    def read(self) -> bytes:
        """Return the file's bytes.

        Raises:
            OSError: as for ``files.read_whole``, or it changed since it was listed.
        """
        return read_whole(self.path, self._check)

    def _check(self, status: os.stat_result) -> None:
        modified = (status.st_mtime_ns // 1000, None)
        if status.st_size != self.length or self.modified_us not in modified:
            raise OSError(errno.ESTALE, "the file has changed since it was listed")


@dataclass(frozen=True)
class _Folder:
    path: bytes
    prefix: bytes  # of the image_ids in it
    is_link: bool


def walk_images(root: str) -> Iterator[FoundImage]:
    """Yield every entry under ``root`` that ends in .jpeg, .jpg or .png, in the order of its path.

    Directories are entered in the place that their name and a '/' take among the sorted names, so
    the order is that of sorting all relative paths, with one directory in memory at a time. Links
    to directories are followed, but not into one that holds them.

    A directory that cannot be read is one entry, whose ``problem`` says why.
    """
    top = os.fsencode(os.path.abspath(root))
    ancestors = [os.path.realpath(top)]
    levels = [_entries(top, b"")]  # no recursion: Python's ends at a thousand nested folders
    while levels:
        entry = next(levels[-1], None)
        if entry is None:
            levels.pop()
            ancestors.pop()
        elif isinstance(entry, FoundImage):
            yield entry
        else:
            real = os.path.join(ancestors[-1], os.path.basename(entry.path))
            if entry.is_link:
                real = os.path.realpath(entry.path)
            if real not in ancestors:
                ancestors.append(real)
                levels.append(_entries(entry.path, entry.prefix))


def _entries(directory: bytes, prefix: bytes) -> Iterator[FoundImage | _Folder]:
    """Yield the images in a folder, and the folders in it, in their order."""
    try:
        with os.scandir(directory) as entries:
            keyed = sorted(
                (e.name + b"/" if _is_directory(e) else e.name, e.path, e.is_symlink())
                for e in entries
            )
    except OSError as error:
        problem = f"the folder cannot be read: {error.strerror}"
        yield FoundImage(_image_id(prefix), path_to_uri(directory), -1, 0, problem)
        return
    for key, path, is_link in keyed:
        name = key.rstrip(b"/")
        if name.lower().endswith(IMAGE_SUFFIXES):
            yield _found(prefix + name, path)
        if key.endswith(b"/"):
            yield _Folder(path, prefix + key, is_link)


def _is_directory(entry: os.DirEntry[Any]) -> bool:
    try:
        return bool(entry.is_dir())
    except OSError:  # a link that loops
        return False


def _found(relative: bytes, path: bytes) -> FoundImage:
    try:
        status = os.stat(path)
        modified_us = max(-LATEST_US, min(status.st_mtime_ns // 1000, LATEST_US))
        length = status.st_size
    except OSError:
        length, modified_us = -1, 0
    return FoundImage(_image_id(relative), path_to_uri(path), length, modified_us)


def _image_id(relative: bytes) -> str:
    return relative.replace(b"\\", b"\\\\").decode("utf-8", "backslashreplace")


def path_to_uri(path: bytes) -> str:
    """Return the ``file:`` URI of an absolute path, whatever bytes it is made of."""
    return FILE_SCHEME + urllib.parse.quote_from_bytes(path)


def uri_to_path(uri: str) -> bytes:
    """Return the path that ``path_to_uri`` was given.

    Raises:
        ValueError: ``uri`` does not begin with ``file://``.
    """
    if not uri.startswith(FILE_SCHEME):
        raise ValueError(f"expected a URI that begins with file://, received {uri!r}")
    return urllib.parse.unquote_to_bytes(uri.removeprefix(FILE_SCHEME))
