"""An image root, whether a folder or a pack: what lies under it, and the bytes of one image."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from cxr_spark.dataset.listing import (
    FILE_SCHEME,
    LATEST_US,
    FoundImage,
    Listed,
    uri_to_path,
    walk_images,
)
from cxr_spark.dataset.pack import (
    RECORD,
    check_pack,
    find_packed,
    is_pack,
    lies_in_half_a_pack,
    list_packed,
)
from cxr_spark.dataset.remote import (
    RemoteImage,
    check_remote_root,
    read_remote,
    walk_remote,
)
from cxr_spark.errors import UserError
from cxr_spark.files import read_whole
from cxr_spark.filesystems import is_remote

if TYPE_CHECKING:
    from cxr_spark.dataset.pack_reader import Packed, PackReader


def check_root(images: str) -> None:
    """Refuse an image root that is no folder, and a pack whose files are not all there.

    Raises:
        UserError: says which it is.
    """
    if is_remote(images):
        check_remote_root(images)
        return
    if not os.path.isdir(images):
        what = "a file" if os.path.exists(images) else "nothing is there"
        raise UserError(f"Expected a folder under --images. Received: {images} ({what})")
    if is_pack(images):
        check_pack(Path(images))


def absolute(images: str) -> str:
    """Return a root as it is called from any folder."""
    return images if is_remote(images) else os.path.abspath(images)


def no_images(images: str) -> UserError:
    """Return the error of a root under which nothing was found."""
    if not is_remote(images) and lies_in_half_a_pack(images):
        return UserError(
            f"Expected a folder of images, or a whole pack, under --images. Received: {images}, "
            f"which lacks {RECORD}, as a pack that was not copied or made to its end"
        )
    return UserError(
        f"Expected at least one image under --images. Received: {images} "
        "(0 files end in .jpeg, .jpg or .png)"
    )


def list_images(root: str) -> Iterator[FoundImage]:
    """Yield every image under a root in the order of its path; see ``walk_images``.

    Raises:
        UserError: it is a pack, and damaged.
    """
    if is_remote(root):
        return walk_remote(root)
    return list_packed(root) if is_pack(root) else walk_images(root)


def source_of(found: FoundImage, packs: PackReader) -> bytes | Listed | Packed | RemoteImage:
    """Return what ``engine.pipeline.prepare`` takes: a file's path, or a packed image."""
    if found.path.startswith(FILE_SCHEME):
        return uri_to_path(found.path)
    return as_listed(found.image_id, found.path, found.length, found.modified_us, packs)


def as_listed(
    image_id: str, path: str, length: int, modified_us: int, packs: PackReader
) -> Listed | Packed | RemoteImage:
    """Return what gives an image's bytes, as long as it is what it was when it was listed."""
    # A wrong date that a column cannot hold stands as the nearest that it can.
    modified = modified_us if abs(modified_us) < LATEST_US else None
    if path.startswith(FILE_SCHEME):
        return Listed(uri_to_path(path), length, modified)
    if is_remote(path):
        return RemoteImage(path, length, modified)
    return packs.find(path, image_id, length, modified)


def open_root(root: str | Path) -> Callable[[str], bytes]:
    """Return a function from an image_id to the bytes of that image.

    It raises OSError, ValueError or RuntimeError where there is no such image, it cannot be read,
    or it lies outside the root.
    """
    if is_remote(root):
        return _open_remote(str(root))
    return _open_pack(Path(root)) if is_pack(root) else _open_folder(Path(root))


def _open_remote(root: str) -> Callable[[str], bytes]:
    def read(image_id: str) -> bytes:
        if ".." in image_id.split("/"):
            raise PermissionError(errno.EPERM, "it lies outside the image root")
        return read_remote(root, image_id.replace("\\\\", "\\"))

    return read


def _open_folder(root: Path) -> Callable[[str], bytes]:
    def read(image_id: str) -> bytes:
        file = root / image_id
        if not file.resolve().is_relative_to(root.resolve()):
            raise PermissionError(errno.EPERM, "it lies outside the image root")
        return read_whole(file)

    return read


def _open_pack(root: Path) -> Callable[[str], bytes]:
    from cxr_spark.dataset.pack_reader import PackReader

    packs, finders = PackReader(), list[Callable[[str], FoundImage | None]]()

    def read(image_id: str) -> bytes:
        if not finders:
            try:
                finders.append(find_packed(root))
            except UserError as error:
                raise OSError(errno.EIO, str(error)) from error
        found = finders[0](image_id)
        if found is None:
            raise FileNotFoundError(errno.ENOENT, "the pack has no such image")
        with packs:
            return packs.find(found.path, image_id, found.length, found.modified_us).read()

    return read
