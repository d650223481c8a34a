"""Images on object stores and HDFS: a walk over a root by its URI, and bytes read ahead."""

from __future__ import annotations

import errno
import functools
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from cxr_spark.dataset.listing import IMAGE_SUFFIXES, LATEST_US, FoundImage
from cxr_spark.errors import UserError
from cxr_spark.files import MAX_BYTES, Source
from cxr_spark.filesystems import join, kind_of, locate

if TYPE_CHECKING:
    from pyarrow.fs import FileInfo, FileSystem

# An image takes three requests of tens of milliseconds, in which a core decodes tens of images; at
# most 25 connections are open at once. Ahead are the images of a group, while one is computed.
# A worker has two groups at a time, of which these are the bytes of one.
THREADS, IMAGES_AHEAD, BYTES_AHEAD = 24, 256, MAX_BYTES // 2
WAITS_S = (1.0, 4.0)  # before a folder is listed again


def check_remote_root(root: str) -> None:
    """Refuse an image root that is no folder, or whose file system cannot be had.

    Raises:
        UserError: says which it is, in the words of the file system.
    """
    from pyarrow.fs import FileType

    kind = kind_of(root, "images")
    if kind != FileType.Directory:
        what = "a file" if kind == FileType.File else "nothing is there"
        raise UserError(f"Expected a folder under --images. Received: {root} ({what})")


def walk_remote(root: str) -> Iterator[FoundImage]:
    """Yield the images under a root in the order of ``walk_images``, with one folder in memory.

    Raises:
        UserError: a folder cannot be listed; one that was left out would be images lost.
    """
    files, top = locate(root)
    top = top.rstrip("/")

    def entries(prefix: str) -> Iterator[FoundImage | str]:
        listed = _list_folder(files, f"{top}/{prefix}".rstrip("/") or "/", join(root, prefix))
        files_here = {key for key, _ in listed if not key.endswith("/")}
        for key, info in listed:
            relative = prefix + key.rstrip("/")
            # A store may have an object and others "in" it.
            again = key.endswith("/") and key[:-1] in files_here
            if relative.lower().endswith(_SUFFIXES) and not again:
                length = -1 if info.size is None else info.size
                uri = join(root, relative)
                yield FoundImage(_image_id(relative), uri, length, _modified_us(info))
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


_SUFFIXES = tuple(suffix.decode() for suffix in IMAGE_SUFFIXES)


def _list_folder(files: FileSystem, path: str, uri: str) -> list[tuple[str, FileInfo]]:
    """Return names, of folders with a '/' after it, in the order of their UTF-8."""
    from pyarrow.fs import FileSelector, FileType

    for wait_s in (*WAITS_S, None):
        try:
            infos = files.get_file_info(FileSelector(path))
            break
        except Exception as error:  # each file system has its own
            if wait_s is None:
                told = " ".join(str(error).split())
                raise UserError(f"Expected to list {uri}. Received: {told}") from error
            time.sleep(wait_s)
    keyed = []
    for info in infos:
        name = info.path.removeprefix(path.rstrip("/") + "/")
        if not name.strip("/") or "/" in name.rstrip("/"):
            raise UserError(
                f"Expected names without an empty part between two '/'. Received: {uri}{name}"
            )
        is_folder = info.type == FileType.Directory
        keyed.append((name.rstrip("/") + ("/" if is_folder else ""), info))
    return sorted(keyed, key=lambda one: one[0].encode())


def _image_id(relative: str) -> str:
    return relative.replace("\\", "\\\\")


def _modified_us(info: FileInfo) -> int:
    """Return the time of the last change, to the second: an answer may have no more than a list."""
    seconds = (info.mtime_ns or 0) // 10**9  # some tell no time
    return max(-LATEST_US, min(seconds * 10**6, LATEST_US))


class RemoteImage(NamedTuple):
    """An image as it was when it was listed.

    Attributes:
        uri: of its file.
        length: in bytes; -1 if unknown.
        modified_us: time of its last modification, microseconds since 1970 UTC; 0 or None if
            unknown.
    """

    uri: str
    length: int
    modified_us: int | None

    def read(self) -> bytes:
        """Return the file's bytes.

        Raises:
            OSError: it cannot be read, is too large, or changed since it was listed.
        """
        content, info = _read(self.uri, self.length)
        times = (self.modified_us or 0, _modified_us(info))
        if self.length not in (-1, len(content)) or (all(times) and times[0] != times[1]):
            raise OSError(errno.ESTALE, "the file has changed since it was listed")
        return content


def read_remote(root: str, name: str) -> bytes:
    """Return the bytes of a file under a root, whatever it was when it was listed.

    Raises:
        OSError: it cannot be read, or is too large.
    """
    return _read(join(root, name), -1)[0]


def has_file(root: str, name: str) -> bool:
    """Return whether a root holds a file of a name."""
    files, path = locate(join(root, name))
    return bool(files.get_file_info(path).is_file)


def _read(uri: str, length: int) -> tuple[bytes, FileInfo]:
    """Return a file's bytes, and what is told of it after it was read.

    Of a file that is longer than was listed one byte more is read, and of none too many.
    """
    most = MAX_BYTES if length < 0 else length
    try:
        files, path = locate(uri)
        if length < 0 and (size := files.get_file_info(path).size) is not None:
            most = size
        if most > MAX_BYTES:
            reason = f"the file has {most:,} bytes, more than {MAX_BYTES:,}"
            raise OSError(errno.EFBIG, reason)
        with files.open_input_stream(path) as file:
            return file.read(most + 1), files.get_file_info(path)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # fsspec's file systems have their own
        raise OSError(errno.EIO, f"{type(error).__name__}: {error}") from error


class _Ahead:
    """Reads images by threads before they are asked for, as many as ``BYTES_AHEAD`` hold."""

    def __init__(self, images: Sequence[RemoteImage]) -> None:
        self._images, self._lock, self._n_begun = images, threading.Lock(), 0
        self._begun: dict[int, Future[bytes]] = {}
        self._held = 0  # bytes of what is begun and not yet handed over
        self._begin(-1)

    def read(self, k: int) -> bytes:
        with self._lock:
            self._begin(k)
            future = self._begun.pop(k)
        try:
            return future.result()
        finally:
            with self._lock:
                self._held -= _bytes(self._images[k])

    def _begin(self, k: int) -> None:
        """Begin what is wanted by the time that an image is asked for."""
        while self._n_begun < len(self._images) and self._is_wanted(k):
            image = self._images[self._n_begun]
            self._begun[self._n_begun] = _threads().submit(image.read)
            self._held += _bytes(image)
            self._n_begun += 1

    def _is_wanted(self, k: int) -> bool:
        fits = self._held + _bytes(self._images[self._n_begun]) <= BYTES_AHEAD
        return self._n_begun <= k or (self._n_begun <= k + IMAGES_AHEAD and fits)


def _bytes(image: RemoteImage) -> int:
    return MAX_BYTES if image.length < 0 else image.length


class _Awaited(NamedTuple):
    ahead: _Ahead
    k: int

    def read(self) -> bytes:
        return self.ahead.read(self.k)


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(THREADS, "reading ahead")


def read_ahead(images: Sequence[Source]) -> Sequence[Source]:
    """Return what gives the same bytes, each once; of remote images they are read beforehand.

    They may be asked for by several threads, about in their order.
    """
    places = [k for k, image in enumerate(images) if isinstance(image, RemoteImage)]
    if not places:
        return images
    ahead = _Ahead([image for image in images if isinstance(image, RemoteImage)])
    awaited = {place: _Awaited(ahead, k) for k, place in enumerate(places)}
    return [awaited.get(k, image) for k, image in enumerate(images)]
