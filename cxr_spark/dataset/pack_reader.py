"""The bytes of packed images, a row group at a time: a task asks for them in the parts' order."""

from __future__ import annotations

import errno
import os
import stat
import threading
import zlib
from collections import OrderedDict
from dataclasses import dataclass
from typing import Any, NamedTuple

from cxr_spark.dataset.pack import Place, place_of
from cxr_spark.dataset.pack_writer import BYTES_A_GROUP, PART_COLUMNS, ROWS_A_GROUP
from cxr_spark.files import MAX_BYTES

# Threads that decode for a GPU are some images apart, so that two groups are asked for at a border.
_GROUPS_KEPT = 2
# What names, numbers and Parquet itself add to the bytes of a group's images.
_MARGIN = 2**20


class _Group(NamedTuple):
    told: list[tuple[str, int, int]]  # image_id, length, modified_us
    errors: list[str | None]
    checksums: list[int | None]
    content: Any  # pyarrow's array of binary


@dataclass(frozen=True)
class Packed:
    """A packed image as it was listed.

    Attributes:
        reader: that has its bytes.
        place: where they lie.
        image_id: of the image.
        length: in bytes.
        modified_us: time of the file's last modification; None if unknown.
    """

    reader: PackReader
    place: Place
    image_id: str
    length: int
    modified_us: int | None

    def read(self) -> bytes:
        """Return the image's bytes.

        Raises:
            OSError: the part is missing or damaged, another image lies there than was listed, or
                the file could not be read when it was packed: then with the reason of that time.
        """
        return self.reader.read(self)


class PackReader:
    """Reads packed images. It keeps the part open that was read last, and two row groups of parts.

    Any thread may use it.
    """

    def __init__(self) -> None:
        """Open nothing yet."""
        self._lock = threading.Lock()
        self._open: tuple[bytes, Any] | None = None
        self._groups: OrderedDict[tuple[bytes, int], _Group] = OrderedDict()

    def __enter__(self) -> PackReader:
        """Return this reader."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the part that is open, and forget what was read."""
        with self._lock:
            self._close()
            self._groups.clear()

    def find(self, path: str, image_id: str, length: int, modified_us: int | None) -> Packed:
        """Return the image that a row of a listing is of.

        Raises:
            ValueError: ``path`` is not that of a packed image.
        """
        return Packed(self, place_of(path), image_id, length, modified_us)

    def read(self, image: Packed) -> bytes:
        """Return an image's bytes; see ``Packed.read``."""
        place = image.place
        name = os.fsdecode(os.path.basename(place.part))
        with self._lock:
            try:
                group = self._group(place)
            except Exception as error:  # damaged Parquet makes pyarrow raise nearly anything
                told = getattr(error, "strerror", None) or " ".join(str(error).split())
                reason = f"{name} of the pack cannot be read: {told}"
                raise OSError(errno.EIO, reason) from error
        told = (image.image_id, image.length, image.modified_us)
        if place.row >= len(group.told) or not _is_as_listed(told, group.told[place.row]):
            raise OSError(
                errno.ESTALE, f"{name} of the pack holds another image there than was listed"
            )
        if (at_packing := group.errors[place.row]) is not None:
            raise OSError(errno.EIO, at_packing)
        content: bytes | None = group.content[place.row].as_py()
        if content is None or zlib.crc32(content) != group.checksums[place.row]:
            raise OSError(errno.EIO, f"{name} of the pack is damaged: a checksum is wrong")
        return content

    def _group(self, place: Place) -> _Group:
        key = (place.part, place.row_group)
        if key not in self._groups:
            group = _read_group(self._part(place.part), place.row_group)
            while len(self._groups) >= _GROUPS_KEPT:
                self._groups.popitem(last=False)
            self._groups[key] = group
        self._groups.move_to_end(key)
        return self._groups[key]

    def _part(self, part: bytes) -> Any:
        if self._open is None or self._open[0] != part:
            self._close()
            self._open = (part, _open_part(part))
        return self._open[1]

    def _close(self) -> None:
        if self._open is not None:
            self._open[1].close(force=True)
            self._open = None


def _is_as_listed(listed: tuple[str, int, int | None], told: tuple[str, int, int]) -> bool:
    return listed[:2] == told[:2] and listed[2] in (told[2], None)


def _open_part(part: bytes) -> Any:
    """Open a part as Parquet. A link is not followed: it might lead out of the pack."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    descriptor = os.open(part, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    file = os.fdopen(descriptor, "rb")
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        return pq.ParquetFile(pa.PythonFile(file, mode="r"))
    except BaseException:
        file.close()
        raise


def _read_group(part: Any, row_group: int) -> _Group:
    """Read a row group, once it has said that it is as small as a pack's are."""
    import pyarrow as pa

    if row_group >= part.num_row_groups:
        raise ValueError(f"it has {part.num_row_groups} row groups and no number {row_group}")
    stated = part.metadata.row_group(row_group)
    largest = max(BYTES_A_GROUP, MAX_BYTES) + _MARGIN
    if stated.num_rows > ROWS_A_GROUP or stated.total_byte_size > largest:
        raise ValueError(f"its row group {row_group} is larger than a pack's are")
    columns_stated = [stated.column(i) for i in range(stated.num_columns)]
    if any("DICTIONARY" in kind for column in columns_stated for kind in column.encodings):
        # One value of megabytes, stated once, would be had for each row.
        raise ValueError(f"its row group {row_group} repeats values, as a pack's never do")
    read = part.read_row_group(row_group, columns=list(PART_COLUMNS), use_threads=False)
    rows = read.combine_chunks()
    modified_us = rows["modified"].cast(pa.int64())
    columns = (rows["image_id"], rows["length"], modified_us)
    return _Group(
        told=list(zip(*(column.to_pylist() for column in columns), strict=True)),
        errors=rows["error"].to_pylist(),
        checksums=rows["crc32"].to_pylist(),
        content=rows["content"].chunk(0),
    )
