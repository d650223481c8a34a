"""A pack: an image root copied once into Parquet of bytes, for file systems slow at many files.

PACKED/
  part-00000-1a2b3c4d.parquet   a row for every image found, in the order of a hash of its name
  _images.parquet               the same images in the order of their paths, without their bytes
  _pack.json                    the record, written last: what is without it is no whole pack
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import stat
import urllib.parse
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from cxr_spark.dataset.listing import FoundImage
from cxr_spark.errors import UserError
from cxr_spark.files import read_whole, write_json

VERSION = 1
RECORD = "_pack.json"
INDEX = "_images.parquet"
SCHEME = "pack://"
INDEX_COLUMNS = {
    "position": "bigint",
    "image_id": "string",
    "length": "bigint",
    "modified_us": "bigint",
    "problem": "string",
    "error": "string",
    "part": "string",
    "row_group": "int",
    "row": "int",
}

# Part files and places in them, and nothing that could lead elsewhere.
_PART = r"part-\d{5,}-[0-9a-f]{8}\.parquet"
_URI = re.compile(rf"{SCHEME}(/|/.*/)({_PART})#(\d{{1,9}})\.(\d{{1,9}})")
_LISTED = ["image_id", "length", "modified_us", "problem", "part", "row_group", "row"]
_ROWS_A_BATCH = 10_000
_AGAIN = "Copy it again whole, or make it again: jobs/pack.py --overwrite"


@dataclass(frozen=True)
class PackRecord:
    """What ``_pack.json`` holds.

    Attributes:
        images: the image root that was packed, as it was given.
        limit: how many images a sample was cut to; None for all.
        n_images: rows of the index, and of all parts together.
        n_errors: how many of them have no bytes.
        index_bytes: size of the index.
        parts: size in bytes and rows of each part, by its name.
        version: of this layout.
    """

    images: str
    limit: int | None
    n_images: int
    n_errors: int
    index_bytes: int
    parts: dict[str, tuple[int, int]]
    version: int = VERSION


class Place(NamedTuple):
    """Where a packed image lies: the part's path, its row group there, its row in that."""

    part: bytes
    row_group: int
    row: int


def is_pack(root: str | Path) -> bool:
    """Return whether an image root is a pack; a part of one that lacks the record is none."""
    return os.path.lexists(os.path.join(root, RECORD))


def lies_in_half_a_pack(root: str | Path) -> bool:
    """Return whether a folder that is no pack holds what packs do."""
    names = os.listdir(root)
    return RECORD not in names and any(n == INDEX or re.fullmatch(_PART, n) for n in names)


def write_pack_record(root: Path, record: PackRecord) -> None:
    """Write ``_pack.json``, by which a folder is a pack."""
    write_json(root / RECORD, dataclasses.asdict(record))


def read_pack_record(root: Path) -> PackRecord:
    """Read ``_pack.json``.

    Raises:
        UserError: it is damaged, or of another version.
    """
    file = root / RECORD
    try:
        fields = json.loads(read_whole(file))
        version = fields["version"]
        parts = {name: (int(size), int(rows)) for name, (size, rows) in fields["parts"].items()}
        record = PackRecord(
            images=str(fields["images"]),
            limit=fields["limit"],
            n_images=int(fields["n_images"]),
            n_errors=int(fields["n_errors"]),
            index_bytes=int(fields["index_bytes"]),
            parts=parts,
        )
        strange = [name for name in parts if not re.fullmatch(_PART, name)]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"Expected the record of a pack. Received: {file} ({error!r}). {_AGAIN}."
        ) from error
    if version != VERSION or strange:
        what = f"which names {strange[0]!r}" if strange else f"of version {version}"
        raise UserError(
            f"Expected the record of a pack of version {VERSION}. Received: {file}, {what}. "
            f"{_AGAIN}."
        )
    return record


def check_pack(root: Path) -> PackRecord:
    """Refuse a pack whose files are not those that its record names, and return the record.

    Raises:
        UserError: names the first file that is missing, cut, replaced, foreign or a link.
    """
    record = read_pack_record(root)
    stated = {name: size for name, (size, _) in record.parts.items()}
    stated[INDEX] = record.index_bytes
    there = {name for name in os.listdir(root) if name == INDEX or re.fullmatch(_PART, name)}
    for name in sorted({*stated, *there, *foreign_names(root)}):
        if name not in stated:
            what = "which is not one of them"
        elif name not in there:
            what = "which is missing"
        else:
            status = os.lstat(root / name)
            if not stat.S_ISREG(status.st_mode):
                what = "which is no regular file"
            elif status.st_size != stated[name]:
                what = f"of {status.st_size:,} bytes, where {stated[name]:,} were written"
            else:
                continue
        raise UserError(
            f"Expected the files that {root / RECORD} names. Received: {root / name}, {what}. "
            f"{_AGAIN}."
        )
    return record


def foreign_names(root: Path) -> list[str]:
    """Return what a pack's folder holds that no pack does: an image that was put there, say."""
    from cxr_spark.dataset.phantoms import MARKER

    ours = (RECORD, INDEX, MARKER)
    return [
        name
        for name in sorted(os.listdir(root))
        if name not in ours and name[0] != "." and not re.fullmatch(_PART, name)
    ]


def list_packed(root: str | Path) -> Iterator[FoundImage]:
    """Yield what the walk of the packed image root found, in its order.

    Raises:
        UserError: the pack is damaged; names the file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    record, n_rows = read_pack_record(Path(root)), 0
    make_found = _maker(root, record)
    try:
        with pq.ParquetFile(Path(root) / INDEX) as index:
            for batch in index.iter_batches(_ROWS_A_BATCH, columns=_LISTED, use_threads=False):
                columns = (batch.column(name).to_pylist() for name in _LISTED)
                for row in zip(*columns, strict=True):
                    yield make_found(*row)
                n_rows += len(batch)
    except (OSError, KeyError, pa.ArrowException) as error:
        raise _damaged(root, f"cannot be read: {error}") from error
    if n_rows != record.n_images:
        raise _damaged(root, f"has {n_rows:,} rows, where {record.n_images:,} were written")


def find_packed(root: str | Path) -> Callable[[str], FoundImage | None]:
    """Return a function that finds one image of a pack by its name, or None.

    The names of all are in memory while it is.

    Raises:
        UserError: the pack is damaged; names the file.
    """
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    make_found = _maker(root, read_pack_record(Path(root)))
    try:
        index = pq.ParquetFile(Path(root) / INDEX).read(columns=_LISTED)
    except (OSError, pa.ArrowException) as error:
        raise _damaged(root, f"cannot be read: {error}") from error

    def find(image_id: str) -> FoundImage | None:
        i = pc.index(index["image_id"], image_id).as_py()
        return None if i < 0 else make_found(*(index[name][i].as_py() for name in _LISTED))

    return find


def _maker(root: str | Path, record: PackRecord) -> Callable[..., FoundImage]:
    """Return a function from a row of the index to what the walk had found."""
    folder = os.path.join(os.fsencode(os.path.abspath(root)), b"")
    prefix = SCHEME + urllib.parse.quote_from_bytes(folder)

    def make_found(
        image_id: str, length: int, modified_us: int, problem: str | None,
        part: str, row_group: int, row: int,
    ) -> FoundImage:  # fmt: skip
        if part not in record.parts:
            raise _damaged(root, f"names {part!r}, which {RECORD} does not")
        if None in (image_id, length, modified_us, row_group, row):
            raise _damaged(root, f"says nothing of where {image_id} lies, or what it is")
        path = f"{prefix}{part}#{row_group}.{row}"
        return FoundImage(image_id, path, length, modified_us, problem or "")

    return make_found


def _damaged(root: str | Path, what: str) -> UserError:
    file = Path(root) / INDEX
    return UserError(
        f"Expected the list of a pack's images. Received: {file}, which {what}. {_AGAIN}."
    )


def place_of(uri: str) -> Place:
    """Return the place that a packed image's ``path`` names: always a part file.

    Raises:
        ValueError: it is no such path.
    """
    found = _URI.fullmatch(uri)
    if found is None:
        raise ValueError(f"expected the path of a packed image, received {uri!r}")
    folder, part, row_group, row = found.groups()
    path = urllib.parse.unquote_to_bytes(folder) + part.encode()
    return Place(path, int(row_group), int(row))
