"""Images on object stores and HDFS: a walk over a root by its URI, and bytes before they are asked.

One place turns a URI into a file system, of pyarrow where it has one, else of fsspec.
"""

from __future__ import annotations

import errno
import functools
import threading
import urllib.parse
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple, Protocol

from cxr_spark.dataset.listing import IMAGE_SUFFIXES, LATEST_US, FoundImage
from cxr_spark.errors import UserError
from cxr_spark.files import MAX_BYTES, URI

if TYPE_CHECKING:
    from pathlib import Path

    from pyarrow.fs import FileInfo, FileSystem

# Hadoop's name of a file system, and pyarrow's.
ARROW_SCHEMES = {"s3a": "s3", "s3": "s3", "gs": "gs", "hdfs": "hdfs", "viewfs": "viewfs"}
# An image takes three requests of tens of milliseconds, in which a core decodes tens of images; at
# most 25 connections are open at once.
THREADS, IMAGES_AHEAD = 24, 32


def is_remote(root: str | Path) -> bool:
    """Return whether an image root is the URI of something else than a mounted folder."""
    found = URI.match(str(root))
    return found is not None and found[1].lower() not in ("file", "pack")


# pyarrow 14 was seen to crash where several threads were the first to ask for S3.
_connecting = threading.Lock()


@functools.cache
def _connect(scheme: str, authority: str, query: str) -> tuple[FileSystem, str]:
    """Return the file system, and what stands before a URI's path in the paths that it takes."""
    from pyarrow import fs

    if scheme in ARROW_SCHEMES:
        parts = (ARROW_SCHEMES[scheme], authority, "" if authority else "/", query, "")
        connected, base = fs.FileSystem.from_uri(urllib.parse.urlunsplit(parts))
    else:
        import fsspec  # type: ignore[import-untyped]

        handler, base = fsspec.core.url_to_fs(f"{scheme}://{authority}/")
        connected = fs.PyFileSystem(fs.FSSpecHandler(handler))
    return connected, base.rstrip("/")


def _locate(uri: str) -> tuple[FileSystem, str]:
    parts = urllib.parse.urlsplit(uri)
    with _connecting:
        connected, base = _connect(parts.scheme.lower(), parts.netloc, parts.query)
    return connected, base + urllib.parse.unquote(parts.path)


def check_remote_root(root: str) -> None:
    """Refuse an image root that is no folder, or whose file system cannot be had.

    Raises:
        UserError: says which it is, in the words of the file system.
    """
    from pyarrow.fs import FileType

    try:
        files, path = _locate(root)
        kind = files.get_file_info(path).type
    except ImportError as error:
        raise UserError(
            f"Expected the package that reads {root} on driver and executors. Received: {error}"
        ) from error
    except Exception as error:  # each file system has its own
        told = str(error).strip().splitlines()
        raise UserError(
            f"Expected a folder under --images. Received: {root} ({told[0] if told else error!r})"
        ) from error
    if kind != FileType.Directory:
        what = "a file" if kind == FileType.File else "nothing is there"
        raise UserError(f"Expected a folder under --images. Received: {root} ({what})")


def walk_remote(root: str) -> Iterator[FoundImage]:
    """Yield what ``walk_images`` yields of a folder: in its order, with one folder in memory."""
    files, top = _locate(root)
    top = top.rstrip("/")
    uri = functools.partial(_join, root)

    def entries(prefix: str) -> Iterator[FoundImage | str]:
        try:
            listed = _list_folder(files, f"{top}/{prefix}".rstrip("/"))
        except Exception as error:
            problem = f"the folder cannot be read: {' '.join(str(error).split())}"
            yield FoundImage(_image_id(prefix), uri(prefix), -1, 0, problem)
            return
        for key, info in listed:
            relative = prefix + key.rstrip("/")
            if relative.lower().endswith(_SUFFIXES):
                length = -1 if info.size is None else info.size
                yield FoundImage(_image_id(relative), uri(relative), length, _modified_us(info))
            if key.endswith("/"):
                yield prefix + key

    levels = [entries("")]
    while levels:
        entry = next(levels[-1], None)
        if entry is None:
            levels.pop()
        elif isinstance(entry, FoundImage):
            yield entry
        else:
            levels.append(entries(entry))


def _join(root: str, relative: str) -> str:
    """Return the URI of what lies under a root; names are quoted, and nothing twice."""
    parts = urllib.parse.urlsplit(root)
    folder = urllib.parse.unquote(parts.path).rstrip("/")
    path = urllib.parse.quote(f"{folder}/{relative}")
    return urllib.parse.urlunsplit((parts.scheme, parts.netloc, path, parts.query, ""))


_SUFFIXES = tuple(suffix.decode() for suffix in IMAGE_SUFFIXES)


def _list_folder(files: FileSystem, path: str) -> list[tuple[str, FileInfo]]:
    """Return names, of folders with a '/' after it, in the order of their UTF-8."""
    from pyarrow.fs import FileSelector, FileType

    infos = files.get_file_info(FileSelector(path))
    keyed = [
        (info.base_name + ("/" if info.type == FileType.Directory else ""), info) for info in infos
    ]
    return sorted(keyed, key=lambda one: one[0].encode("utf-8", "surrogateescape"))


def _image_id(relative: str) -> str:
    return relative.replace("\\", "\\\\")


def _modified_us(info: FileInfo) -> int:
    nanoseconds = info.mtime_ns or 0  # some tell no time
    return max(-LATEST_US, min(nanoseconds // 1000, LATEST_US))


class RemoteImage(NamedTuple):
    """An image as it was when it was listed.

    Attributes:
        uri: of its file.
        length: in bytes.
        modified_us: time of its last modification, microseconds since 1970 UTC; None if unknown.
    """

    uri: str
    length: int
    modified_us: int | None

    def read(self) -> bytes:
        """Return the file's bytes.

        Raises:
            OSError: it cannot be read, is too large, or changed since it was listed.
        """
        content, modified_us = _read(self.uri)
        if len(content) != self.length or self.modified_us not in (modified_us, None):
            raise OSError(errno.ESTALE, "the file has changed since it was listed")
        return content


def read_remote(root: str, image_id: str) -> bytes:
    """Return the bytes of one image under a root, whatever it was when it was listed.

    Raises:
        OSError: it cannot be read.
    """
    return _read(_join(root, image_id.replace("\\\\", "\\")))[0]


def _read(uri: str) -> tuple[bytes, int]:
    """Return a file's bytes and the time of its last modification."""
    try:
        files, path = _locate(uri)
        info = files.get_file_info(path)
        if info.size is None:
            raise FileNotFoundError(errno.ENOENT, "no such file")
        if info.size > MAX_BYTES:
            reason = f"the file has {info.size:,} bytes, more than {MAX_BYTES:,}"
            raise OSError(errno.EFBIG, reason)
        with files.open_input_stream(path) as file:
            return file.read(MAX_BYTES + 1), _modified_us(info)
    except OSError:
        raise
    except Exception as error:  # fsspec's file systems have their own
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}") from error


class Readable(Protocol):
    """What has the bytes of one image."""

    def read(self) -> bytes:
        """Return them."""
        ...


class _Ahead:
    """Reads images by threads before they are asked for, as many as ``MAX_BYTES`` hold."""

    def __init__(self, images: Sequence[RemoteImage]) -> None:
        self._images, self._lock, self._n_begun = images, threading.Lock(), 0
        self._begun: dict[int, Future[bytes]] = {}
        self._held = 0  # bytes of what is begun and not yet handed over

    def read(self, k: int) -> bytes:
        with self._lock:
            while self._n_begun < len(self._images) and self._is_wanted(k):
                image = self._images[self._n_begun]
                self._begun[self._n_begun] = _threads().submit(image.read)
                self._held += max(0, image.length)
                self._n_begun += 1
            future = self._begun.pop(k)
        try:
            return future.result()
        finally:
            with self._lock:
                self._held -= max(0, self._images[k].length)

    def _is_wanted(self, k: int) -> bool:
        fits = self._held + self._images[self._n_begun].length <= MAX_BYTES
        return self._n_begun <= k or (self._n_begun <= k + IMAGES_AHEAD and fits)


class _Awaited(NamedTuple):
    ahead: _Ahead
    k: int

    def read(self) -> bytes:
        return self.ahead.read(self.k)


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(THREADS, "reading ahead")


def read_ahead(images: Sequence[Readable]) -> Sequence[Readable]:
    """Return what gives the same bytes, each once; of remote images they are read beforehand.

    They may be asked for by several threads, about in their order.
    """
    places = [k for k, image in enumerate(images) if isinstance(image, RemoteImage)]
    if not places:
        return images
    ahead = _Ahead([image for image in images if isinstance(image, RemoteImage)])
    awaited = {place: _Awaited(ahead, k) for k, place in enumerate(places)}
    return [awaited.get(k, image) for k, image in enumerate(images)]
