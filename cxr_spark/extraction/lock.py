"""One run at a time writes to a features folder."""

from __future__ import annotations

import fcntl
import itertools
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from cxr_spark.errors import RunFailed, UserError
from cxr_spark.paths import AnyPath, RemotePath, StoreError

log = logging.getLogger(__name__)

LOCK_NAME = "_lock"
# Who holds a folder of a store writes its lock anew so often; one that does not is gone.
BEAT_S = 5.0
MISSED_BEATS = 4


@contextmanager
def locked(folder: AnyPath, flag: str = "features") -> Iterator[Callable[[], None]]:
    """Hold a folder for this process, until the block or the process ends.

    A local folder's lock is the kernel's, which lets go of it however the process ends. A store has
    none: there a file says who holds the folder, and is written anew every few seconds. One that
    stays as it is for some of these is nobody's.

    Args:
        folder: local ones exist; its file ``_lock`` says who holds it.
        flag: that another folder could be given by.

    Yields:
        What raises RunFailed where the folder is not this process's any more.

    Raises:
        UserError: another process holds it.
    """
    if isinstance(folder, RemotePath):
        lease = Lease(folder / LOCK_NAME, flag)
        try:
            yield lease.check
        finally:
            lease.release()
        return
    file = folder / LOCK_NAME
    descriptor = _acquire(file, flag)
    try:
        if descriptor is not None:
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, _holder().encode(), 0)
        yield lambda: None
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


class Lease:
    """A lock that is a file of a store, which its holder writes anew every few seconds."""

    def __init__(self, file: RemotePath, flag: str) -> None:
        """Take the file once it is nobody's.

        Raises:
            UserError: somebody holds it, or it cannot be written.
        """
        self._file, self._flag = file, flag
        self._holder, self._own = _holder(), uuid.uuid4().hex
        self._ended, self._lost = threading.Event(), ""
        self._thread = threading.Thread(target=self._go_on, daemon=True)
        self._wait()
        try:
            self._beat(0)
        except StoreError as error:
            raise UserError(f"Expected --{flag} to be written to. Received: {error}") from error
        try:
            time.sleep(BEAT_S / 2.5)  # of two that begin together, the first sees the second's
            if not self._is_own():
                raise _held(file.parent, _told(self._read()), flag)
        except KeyboardInterrupt:
            self.release()
            raise
        self._thread.start()

    def check(self) -> None:
        """See to it that the folder is still this process's, before something is committed.

        Raises:
            RunFailed: it is not, or was not for a while.
        """
        if self._lost:
            raise RunFailed(
                f"{self._file.parent} is not this run's any more ({self._lost}). What was computed "
                "is kept: give the same command again once no other run writes there"
            )

    def release(self) -> None:
        """Let go of the file."""
        self._ended.set()
        if self._thread.is_alive():
            self._thread.join()
        try:
            if not self._lost and self._is_own():
                self._file.unlink()
        except OSError as error:  # not over what ended the run
            log.warning("the lock could not be removed: %s", error)

    def _go_on(self) -> None:
        last = time.monotonic()
        for n in itertools.count(1):
            if self._ended.wait(BEAT_S):
                return
            try:
                if not self._is_own():
                    self._lost = f"held by {_told(self._read()) or 'nobody'}"
                    return
                self._beat(n)
                last = time.monotonic()
            except OSError as error:
                log.warning("the lock could not be written: %s", error)
            if time.monotonic() - last > (MISSED_BEATS - 1) * BEAT_S:
                self._lost = "its lock could not be written for too long"
                return

    def _beat(self, n: int) -> None:
        self._file.write_bytes(f"{self._holder}\n{self._own}\n{n}\n".encode())

    def _is_own(self) -> bool:
        return (self._read() or "").split("\n")[1:2] == [self._own]

    def _read(self) -> str | None:
        """Return what the file says, which is nothing while it is written; None where it is not."""
        try:
            return self._file.read_text()
        except FileNotFoundError:
            return None

    def _wait(self) -> None:
        """Wait until the file is nobody's.

        Raises:
            UserError: somebody writes it anew.
        """
        if (before := self._read()) is None:
            return
        log.info("%s is held by %s: does it still run?", self._file.parent, _told(before))
        deadline = time.monotonic() + MISSED_BEATS * BEAT_S
        while time.monotonic() < deadline:
            time.sleep(BEAT_S / 5)
            now = self._read()
            if now is None:
                return
            before = before or now
            if now and now != before:
                raise _held(self._file.parent, _told(now), self._flag)


def _told(content: str | None) -> str:
    return (content or "").partition("\n")[0]


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
