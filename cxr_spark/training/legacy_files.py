"""A folder of any file system of pyarrow as one of the kind that petastorm hands to pyarrow.

petastorm 0.13 reads data sets by pyarrow's old interface, which takes its old file systems alone.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any

from pyarrow.fs import FileSelector, FileSystem, FileType, SubTreeFileSystem

with warnings.catch_warnings():  # its name is deprecated, and there is no other
    warnings.simplefilter("ignore", FutureWarning)
    from pyarrow.filesystem import FileSystem as OldFileSystem


class LegacyFiles(OldFileSystem):  # type: ignore[misc]
    """What is asked of it while a data set is read: what lies in a folder, and to open files.

    Paths begin with '/', which is the folder itself.
    """

    def __init__(self, folder: str, files: FileSystem) -> None:
        """Take a folder of a file system."""
        self._files = SubTreeFileSystem(folder, files)

    def exists(self, path: str) -> bool:
        """Return whether anything is there."""
        return self.isdir(path) or self.isfile(path)

    def isdir(self, path: str) -> bool:
        """Return whether a folder is there; that of the data set is."""
        return path.strip("/") == "" or bool(self._kind(path) == FileType.Directory)

    def isfile(self, path: str) -> bool:
        """Return whether a file is there."""
        return bool(self._kind(path) == FileType.File)

    def walk(self, path: str) -> Iterator[tuple[str, list[str], list[str]]]:
        """Yield as ``os.walk`` does."""
        infos = self._files.get_file_info(FileSelector(path.strip("/")))
        folders = [info.base_name for info in infos if info.type == FileType.Directory]
        yield path, folders, [info.base_name for info in infos if info.is_file]
        for name in folders:
            yield from self.walk(f"{path.rstrip('/')}/{name}")

    def open(self, path: str, mode: str = "rb") -> Any:
        """Open a file to be read."""
        return self._files.open_input_file(path.strip("/"))

    def _kind(self, path: str) -> Any:
        return self._files.get_file_info(path.strip("/")).type

    def _isfilestore(self) -> bool:
        return True
