"""One part of a pack, written as its images come, in row groups that a reader can keep."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

# So much is read at a time, and kept by a reader: 20 X-rays of 200 kB, or 256 small ones.
ROWS_A_GROUP = 256
BYTES_A_GROUP = 4 * 2**20
PART_COLUMNS = ("image_id", "length", "modified", "error", "crc32", "content")


class PartWriter:
    """Takes images one by one; made by ``open_part``."""

    def __init__(self, writer: Any, schema: Any) -> None:
        """Write to pyarrow's ``writer``."""
        self._writer, self._schema = writer, schema
        self._rows: list[tuple[object, ...]] = []
        self._n_bytes = self._n_groups = 0

    def add(
        self, image_id: str, length: int, modified_us: int, content: bytes | None, error: str | None
    ) -> tuple[int, int]:
        """Add an image, or why it has no bytes.

        Returns:
            The number of its row group, and of its row there.
        """
        n_bytes = len(content or b"")
        if len(self._rows) == ROWS_A_GROUP or self._n_bytes + n_bytes > BYTES_A_GROUP:
            self.flush()
        checksum = None if content is None else zlib.crc32(content)
        self._rows.append((image_id, length, modified_us, error, checksum, content))
        self._n_bytes += n_bytes
        return self._n_groups, len(self._rows) - 1

    def flush(self) -> None:
        """End the row group, if it has any row."""
        import pyarrow as pa

        if not self._rows:
            return
        columns = zip(self._schema, zip(*self._rows, strict=True), strict=True)
        arrays = [pa.array(values, field.type) for field, values in columns]
        self._writer.write_table(pa.table(arrays, schema=self._schema))
        self._rows, self._n_bytes, self._n_groups = [], 0, self._n_groups + 1


@contextmanager
def open_part(file: Path) -> Iterator[PartWriter]:
    """Yield a writer of a new part; the file is whole after the block.

    Images are stored as they are: JPEG and PNG do not shrink, and no two need be the same.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    kinds = (
        pa.string(), pa.int64(), pa.timestamp("us", "UTC"), pa.string(), pa.int64(), pa.binary(),
    )  # fmt: skip
    schema = pa.schema(list(zip(PART_COLUMNS, kinds, strict=True)))
    with pq.ParquetWriter(
        file, schema, compression="none", use_dictionary=False, write_statistics=False
    ) as writer:
        part = PartWriter(writer, schema)
        yield part
        part.flush()
