"""Decoding in a process of its own, so that an image that ends it ends nothing else."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import threading
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

from cxr_spark.engine.pipeline import PreparedImage, prepare_encoded

# The largest images that are not refused take some three seconds.
MAX_SECONDS = 60.0
# Of another cause, as the end of all processes of a machine, a process hardly ends twice.
N_TRIES = 2


class DecoderApart:
    """Decodes one image after another in a process of its own.

    A fault in a decoder's C code ends a process and nobody can catch it. Here it is an error of
    that image, as is decoding that does not end. Any thread may use it; one is served at a time.
    The process ends with the one that started it, however that ends.
    """

    def __init__(self, seconds: float = MAX_SECONDS) -> None:
        """Start nothing yet.

        Args:
            seconds: that an image may take.
        """
        self._seconds = seconds
        self._lock = threading.Lock()
        self._started: tuple[BaseProcess, Connection] | None = None

    def __enter__(self) -> DecoderApart:
        """Return this decoder."""
        return self

    def __exit__(self, *_: object) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def prepare_encoded(self, encoded: bytes, image_size: tuple[int, int]) -> PreparedImage:
        """Do as ``pipeline.prepare_encoded``.

        An image that ends its process twice, or takes too long twice, has an error of stage
        'decode' that says so.

        Raises:
            RuntimeError: no process can be started.
        """
        told = ""
        with self._lock:
            for _ in range(N_TRIES):
                process, connection = self._started or self._start()
                try:
                    connection.send((encoded, image_size))
                    if connection.poll(self._seconds):
                        prepared: PreparedImage = connection.recv()
                        return prepared
                    told = f"takes longer than {self._seconds:.0f} s"
                    process.kill()
                except (EOFError, OSError):
                    process.join()
                    told = f"ends the process that does it ({_tell_end(process)})"
                self._end()
        return PreparedImage(0, 0, None, stage="decode", error=f"decoding it {told}")

    def _start(self) -> tuple[BaseProcess, Connection]:
        spawning = multiprocessing.get_context("spawn")  # a fork would share TensorFlow's threads
        ours, theirs = spawning.Pipe()
        process = spawning.Process(target=_serve, args=(theirs,), daemon=True)
        process.start()
        theirs.close()
        try:
            ours.recv()  # it has imported what it needs: what ends it from now on is an image
        except EOFError:
            process.join()
            raise RuntimeError(
                f"a process to decode images in ended as it began ({_tell_end(process)})"
            ) from None
        self._started = process, ours
        return self._started

    def _end(self) -> None:
        if self._started is None:
            return
        process, connection = self._started
        self._started = None
        connection.close()  # which ends it
        process.join()


def _serve(connection: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the one that started it
    with contextlib.suppress(EOFError):  # its end is that of the process that asks
        connection.send(None)
        while True:
            encoded, image_size = connection.recv()
            connection.send(prepare_encoded(encoded, image_size))


def _tell_end(process: BaseProcess) -> str:
    status = process.exitcode or 0
    return signal.Signals(-status).name if status < 0 else f"status {status}"
