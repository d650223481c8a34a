"""Output folders and small files: checked before work begins, written whole or not at all."""

from __future__ import annotations

import errno
import json
import math
import os
import re
import stat
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from cxr_spark.errors import UserError

# Spark takes these for patterns, petastorm for the end of a path.
UNUSABLE = "[]{}*?#\\"
# Radiographs of 20 million pixels and 16 bits are 40 MB before any compression. A larger file is
# refused before it is read, so that none fills the memory of a worker.
MAX_BYTES = 64 * 2**20


URI = re.compile("([A-Za-z][A-Za-z0-9+.-]+):/")


# What may stand before a path and after it, by the scheme; all else could be a secret.
_AUTHORITIES = {
    "s3": r"[\w.-]+", "s3a": r"[\w.-]+", "gs": r"[\w.-]+",
    "hdfs": r"([\w.-]+@)?[\w.-]*(:\d+)?", "viewfs": r"[\w.-]*",
    "abfs": r"[\w-]+@[\w.-]+", "abfss": r"[\w-]+@[\w.-]+",
}  # fmt: skip
_QUERIES = {"s3": {"region", "scheme", "endpoint_override"}}
_QUERIES |= {"s3a": _QUERIES["s3"]}


def root(text: str) -> str:
    """Return a root of images or features: a path, as ``local_path`` gives, or another's URI.

    Raises:
        ValueError: the URI has what may be a secret, which every record of the images would tell,
            or is none.
    """
    found = URI.match(text)
    if found is None or found[1].lower() == "file":
        return local_path(text)
    parts = re.fullmatch(r"([^:]+)://([^/?#]*)([^?#]*)(\?[^#]*)?", text)
    if parts is None:
        raise ValueError(
            f"a URI that begins with {found[1]}://, in which ? and # in a name are %3F and %23"
        )
    if set(parts[3].strip("/").split("/")) & ({"", ".", ".."} if parts[3].strip("/") else set()):
        raise ValueError(
            "a URI without '//', '/./' and '/../' in its path, which stores read each "
            "in their own way"
        )
    scheme = parts[1].lower()
    known = _QUERIES.get(scheme, set())
    given = {part.partition("=")[0] for part in (parts[4] or "?")[1:].split("&") if part}
    if not re.fullmatch(_AUTHORITIES.get(scheme, r"[\w.-]*(:\d+)?"), parts[2]) or given - known:
        raise ValueError(
            f"a URI of {scheme}: without a user, a password and any option but "
            f"{', '.join(sorted(known)) or 'none'}, for it is stored with the images' names. Keys "
            "come from the environment of driver and executors"
        )
    return text


def without_secret(text: str) -> str:
    """Return a URI without what stands before an '@' and after a '?', where a secret may be."""
    return re.sub(r"\?.*", "?...", re.sub(r"(:/+).*@", r"\1...@", text))


def local_path(text: str) -> str:
    """Return a folder as a path: of a ``file:`` URI what it names, else the text as it is.

    Raises:
        ValueError: it is the URI of something that is no mounted folder.
    """
    found = URI.match(text)
    if found is None:
        return text
    if found[1].lower() != "file" or re.match("file://[^/]", text, re.IGNORECASE):
        raise ValueError(
            "a folder that driver and executors have mounted at the same path: only --images and "
            "--features may lie on object stores and HDFS (s3a:, gs:, abfss:, hdfs:)"
        )
    return "/" + text[len("file:") :].lstrip("/")


def check_writable(folder: Path, flag: str) -> None:
    """Refuse an output folder that cannot serve; write nothing.

    Raises:
        UserError: the folder is a file, may not be written, or has a name that Spark or petastorm
            would take for another; says which, and the flag to change.
    """
    expected = f"Expected a folder under --{flag}"
    existing = folder.absolute()
    if bad := sorted(set(str(existing)) & set(UNUSABLE)):
        raise UserError(
            f"{expected} whose path has none of {UNUSABLE}, which Spark takes for patterns. "
            f"Received: {folder} (has {' '.join(bad)})"
        )
    locale = os.environ.get("LC_ALL") or os.environ.get("LC_CTYPE") or os.environ.get("LANG") or ""
    if not str(existing).isascii() and "utf" not in locale.lower():
        raise UserError(
            f"{expected} with an ASCII path where the locale is not UTF-8. "
            f"Received: {folder} (locale {locale or 'C'}). Set LC_ALL=C.UTF-8."
        )
    while not os.path.lexists(existing):
        existing = existing.parent
    if not existing.is_dir():
        raise UserError(f"{expected}. Received: {folder} ({existing} is a file)")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise UserError(
            f"{expected} that can be written. Received: {folder} (no permission in {existing})"
        )


def refuse_links(folder: Path, flag: str) -> None:
    """Refuse an output folder that holds a link: what is written there would land elsewhere.

    Raises:
        UserError: names the first link, in any folder below.
    """
    for place, folders, names in os.walk(folder):  # which follows none
        for entry in (Path(place, name) for name in sorted((*folders, *names))):
            if entry.is_symlink():
                raise UserError(
                    f"Expected --{flag} to hold no links, where what is written would land "
                    f"elsewhere. Received: {entry} (to {os.readlink(entry)}). Remove it, or give "
                    f"another --{flag}."
                )


def disk_is_full(error: BaseException) -> bool:
    """Return whether an error, of this process or told by Spark, is that no room was left."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return any(os.strerror(code) in str(error) for code in (errno.ENOSPC, errno.EDQUOT))


class Source(Protocol):
    """What the bytes of a file can be had of, other than a path."""

    def read(self) -> bytes:
        """Return them.

        Raises:
            OSError: they cannot be had, or are not those that are meant.
        """
        ...


def read_whole(
    path: str | bytes | Path, check: Callable[[os.stat_result], None] | None = None
) -> bytes:
    """Return the bytes of a regular file of at most ``MAX_BYTES``.

    Args:
        path: of the file.
        check: raises an OSError where the file is not the one that is meant.

    Raises:
        OSError: it cannot be read, is no regular file, is too large, or changed meanwhile.
    """
    with open(path, "rb", opener=_open_at_once) as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        if status.st_size > MAX_BYTES:
            reason = f"the file has {status.st_size:,} bytes, more than {MAX_BYTES:,}"
            raise OSError(errno.EFBIG, reason)
        if check is not None:
            check(status)
        content = file.read(status.st_size + 1)
        after = os.fstat(file.fileno())
    # Of the same length it may be half of one picture and half of another.
    if len(content) != status.st_size or after.st_mtime_ns != status.st_mtime_ns:
        raise OSError(errno.EAGAIN, "the file changed while it was read")
    return content


def _open_at_once(path: str | bytes, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a named pipe would wait for ever


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Yield a path beside a file, to be written; it takes the file's place when the block ends.

    The path is new each time and has the file's suffix. Two processes that write one file do not
    get in each other's way: the file is whole at any moment, and at last the later one's.
    """
    beside = file.with_name(f"_{file.name}.{uuid.uuid4().hex}{file.suffix}")
    try:
        yield beside
        beside.replace(file)
    finally:
        beside.unlink(missing_ok=True)


class Replaceable(Protocol):
    """A file of a store, which is there whole or not at all."""

    def replace_by(self, content: bytes) -> None:
        """Write it."""
        ...


def write_bytes(file: Path | Replaceable, content: bytes) -> None:
    """Write a file whole or not at all: a local one beside first, then in its place."""
    if not isinstance(file, Path):
        file.replace_by(content)
        return
    with replacing(file) as beside:
        beside.write_bytes(content)


def write_json(file: Path | Replaceable, content: dict[str, Any]) -> None:
    """Write JSON whole or not at all."""
    text = json.dumps(content, indent=2, sort_keys=True, default=str) + "\n"
    write_bytes(file, text.encode())


def without_nan(content: Any) -> Any:
    """Return lists, objects and numbers as JSON has them: it has no NaN and no infinity."""
    if isinstance(content, dict):
        return {key: without_nan(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return [without_nan(value) for value in content]
    return None if isinstance(content, float) and not math.isfinite(content) else content
