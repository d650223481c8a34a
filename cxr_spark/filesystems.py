"""URIs of other file systems than the local one: of pyarrow where it has one, else of fsspec.

One place turns a URI into a file system, whether images or features lie there.
"""

from __future__ import annotations

import functools
import threading
import urllib.parse
from typing import TYPE_CHECKING

from cxr_spark.errors import UserError
from cxr_spark.files import URI

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem, FileType

# Hadoop's name of a file system, and pyarrow's.
# Google's is fsspec's: pyarrow 14 lists no folder there that has no object of its own.
ARROW_SCHEMES = {"s3a": "s3", "s3": "s3", "hdfs": "hdfs", "viewfs": "viewfs"}
# pyarrow's, and Hadoop's.
HADOOP_SCHEMES = {"s3": "s3a"}
PATIENCE_S = 300


def is_remote(root: object) -> bool:
    """Return whether a root is the URI of something else than a mounted folder."""
    found = URI.match(str(root))
    return found is not None and found[1].lower() not in ("file", "pack")


# pyarrow 14 was seen to crash where several threads were the first to ask for S3.
_connecting = threading.Lock()


@functools.cache
def _connect(scheme: str, authority: str, query: str) -> tuple[FileSystem, str]:
    """Return the file system, and what stands before a URI's path in the paths that it takes."""
    from pyarrow import fs

    if ARROW_SCHEMES.get(scheme) == "s3":
        return _connect_to_s3(authority, dict(urllib.parse.parse_qsl(query))), authority
    if scheme in ARROW_SCHEMES:
        parts = (ARROW_SCHEMES[scheme], authority, "" if authority else "/", query, "")
        connected, base = fs.FileSystem.from_uri(urllib.parse.urlunsplit(parts))
    else:
        import fsspec  # type: ignore[import-untyped]

        # Or a worker would see for ever what it saw first.
        handler, base = fsspec.core.url_to_fs(f"{scheme}://{authority}/", use_listings_cache=False)
        connected = fs.PyFileSystem(fs.FSSpecHandler(handler))
    return connected, base.rstrip("/")


def _connect_to_s3(bucket: str, options: dict[str, str]) -> FileSystem:
    """Return S3 with as much patience as it takes to copy gigabytes: a reply comes at the end."""
    from pyarrow import fs

    if "region" not in options and "endpoint_override" not in options:
        options = {**options, "region": fs.resolve_s3_region(bucket)}
    return fs.S3FileSystem(request_timeout=PATIENCE_S, connect_timeout=10, **options)


def locate(uri: str) -> tuple[FileSystem, str]:
    """Return the file system of a URI, and its path there.

    Raises:
        ImportError: the package that reads it is not installed.
        Exception: the file system cannot be had; each has its own errors.
    """
    parts = urllib.parse.urlsplit(uri)
    with _connecting:
        connected, base = _connect(parts.scheme.lower(), parts.netloc, parts.query)
    return connected, base + path_of(uri)


def kind_of(uri: str, flag: str) -> FileType:
    """Return whether a URI is a folder, a file, or nothing that is there.

    Args:
        uri: of whatever it is.
        flag: that gave it.

    Raises:
        UserError: its file system cannot be had, in the words of that.
    """
    try:
        files, path = locate(uri)
        return files.get_file_info(path).type
    except ImportError as error:
        raise UserError(
            f"Expected the package that reads {uri} on driver and executors. Received: {error}"
        ) from error
    except Exception as error:  # each file system has its own
        told = str(error).strip().splitlines()
        raise UserError(
            f"Expected a folder under --{flag}. Received: {uri} ({told[0] if told else error!r})"
        ) from error


def join(root: str, relative: str) -> str:
    """Return the URI of what lies under a root; names are quoted, and nothing twice."""
    folder = path_of(root).rstrip("/")
    return with_path(root, f"{folder}/{relative}" if relative else folder)


def path_of(uri: str) -> str:
    """Return the path of a URI, nothing quoted."""
    return urllib.parse.unquote(urllib.parse.urlsplit(uri).path)


def with_path(uri: str, path: str) -> str:
    """Return a URI with another path, of which nothing is quoted yet."""
    parts = urllib.parse.urlsplit(uri)
    query = f"?{parts.query}" if parts.query else ""
    return f"{parts.scheme}://{parts.netloc}{urllib.parse.quote(path)}{query}"


def for_spark(uri: str) -> str:
    """Return a URI as Hadoop's file systems take it: nothing quoted, and no options of pyarrow's.

    Where Spark is to find an endpoint or a region, ``spark.hadoop.fs.s3a.*`` say so.
    """
    parts = urllib.parse.urlsplit(uri)
    scheme = HADOOP_SCHEMES.get(parts.scheme.lower(), parts.scheme.lower())
    return f"{scheme}://{parts.netloc}{path_of(uri)}"
