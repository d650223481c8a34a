"""One run at a time writes to a features folder."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cxr_spark.errors import UserError

log = logging.getLogger(__name__)

LOCK_NAME = "_lock"


@contextmanager
def locked(folder: Path, flag: str = "features") -> Iterator[None]:
    """Hold a folder for this process; the kernel lets go of it when the process ends, however.

    Args:
        folder: exists; its file ``_lock`` says who holds it.
        flag: that another folder could be given by.

    Raises:
        UserError: another process holds it.
    """
    file = folder / LOCK_NAME
    descriptor = _acquire(file, flag)
    try:
        if descriptor is not None:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, _holder().encode(), 0)
        yield
    finally:
        if descriptor is not None:
            file.unlink(missing_ok=True)
            os.close(descriptor)


def _holder() -> str:
    now = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime())
    return f"process {os.getpid()} on {socket.gethostname()}, since {now}"


def _acquire(file: Path, flag: str) -> int | None:
    """Return the descriptor that holds the lock; None where the file system has no locks."""
    while True:
        descriptor = _open(file)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 1000, 0).decode(errors="replace")
            os.close(descriptor)
            raise UserError(
                f"Expected {file.parent} to be written to by one run at a time. "
                f"Received: a second run ({holder or 'another process'} writes to it). "
                f"Wait until it has ended, or give another --{flag}."
            ) from None
        except OSError as error:  # Lustre without its option flock, for one
            log.warning(
                "%s cannot be locked (%s): see to it that no other run writes there",
                file.parent, error.strerror,
            )  # fmt: skip
            os.close(descriptor)
            return None
        if _is_still(file, descriptor):
            return descriptor
        os.close(descriptor)  # its holder removed it while this process opened it


def _open(file: Path) -> int:
    """Open the lock's file, which is no link: what the link leads to would be written over."""
    try:
        return os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    except OSError as error:
        raise UserError(
            f"Expected {file} to be a file that can be written. Received: {error.strerror}. "
            "Look at what it is, and remove it."
        ) from error


def _is_still(file: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(file), os.fstat(descriptor))
    except FileNotFoundError:
        return False
