"""One run at a time writes to a features folder."""

from __future__ import annotations

import fcntl
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from cxr_spark.errors import UserError
from cxr_spark.paths import AnyPath, RemotePath

log = logging.getLogger(__name__)

LOCK_NAME = "_lock"
# Who holds a folder of a store writes its lock anew so often; one that does not is gone.
BEAT_S = 5.0
MISSED_BEATS = 4


@contextmanager
def locked(folder: AnyPath, flag: str = "features") -> Iterator[None]:
    """Hold a folder for this process, until the block or the process ends.

    A local folder's lock is the kernel's, which lets go of it however the process ends. A store has
    none: there a file says who holds the folder, and is written anew every few seconds. One that
    stays as it is for some of these is nobody's.

    Args:
        folder: local ones exist; its file ``_lock`` says who holds it.
        flag: that another folder could be given by.

    Raises:
        UserError: another process holds it.
    """
    if isinstance(folder, RemotePath):
        with _beating(folder / LOCK_NAME, flag):
            yield
        return
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


def _held(folder: AnyPath, holder: str, flag: str) -> UserError:
    return UserError(
        f"Expected {folder} to be written to by one run at a time. "
        f"Received: a second run ({holder or 'another process'} writes to it). "
        f"Wait until it has ended, or give another --{flag}."
    )


@contextmanager
def _beating(file: RemotePath, flag: str) -> Iterator[None]:
    _wait_for(file, flag)
    holder, own = _holder(), uuid.uuid4().hex
    ended = threading.Event()

    def beat(n: int) -> None:
        file.write_bytes(f"{holder}\n{own}\n{n}\n".encode())

    def is_own() -> bool:
        return _read(file).split("\n")[1:2] == [own]

    def go_on() -> None:
        n = 1
        while not ended.wait(BEAT_S):
            n += 1
            try:
                if not is_own():
                    log.error(
                        "%s: another run took this folder while this one stood still. End one of "
                        "them", file.parent,
                    )  # fmt: skip
                    return
                beat(n)
            except Exception as error:  # the work itself will tell, where it cannot write either
                log.warning("%s could not be written: %s", file, error)

    try:
        beat(1)
    except OSError as error:
        raise UserError(
            f"Expected --{flag} to be written to. Received: {file.parent} "
            f"({' '.join(str(error).split())})"
        ) from error
    time.sleep(BEAT_S / 2.5)  # of two that begin together, the first sees the second's
    if not is_own():
        raise _held(file.parent, _read(file).partition("\n")[0], flag)
    thread = threading.Thread(target=go_on, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        if is_own():
            file.unlink()


def _wait_for(file: RemotePath, flag: str) -> None:
    """Wait until a lock is nobody's.

    Raises:
        UserError: somebody writes it anew.
    """
    if not (before := _read(file)):
        return
    holder = before.partition("\n")[0]
    log.info("%s is held by %s: looking whether it still runs", file.parent, holder)
    deadline = time.monotonic() + MISSED_BEATS * BEAT_S
    while time.monotonic() < deadline:
        time.sleep(BEAT_S / 5)
        now = _read(file)
        if not now:
            return
        if now != before:
            raise _held(file.parent, holder, flag)


def _read(file: RemotePath) -> str:
    try:
        return file.read_text()
    except FileNotFoundError:
        return ""


def _acquire(file: Path, flag: str) -> int | None:
    """Return the descriptor that holds the lock; None where the file system has no locks."""
    while True:
        descriptor = _open(file)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            holder = os.pread(descriptor, 1000, 0).decode(errors="replace")
            os.close(descriptor)
            raise _held(file.parent, holder, flag) from None
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
