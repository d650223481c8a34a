"""Processes of one thread that work in step: each measures, all at the same time."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

from cxr_spark.benchmark.rows import MeasurementError


class Processes:
    """Objects in processes of their own, each asked the same at the same time.

    A process is spawned, not forked: what the parent has imported is not in it.
    """

    def __init__(self, make: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> None:
        """Start a process for each tuple of arguments, in which ``make(*arguments)`` answers."""
        context = multiprocessing.get_context("spawn")
        self._running = []
        for own in arguments:
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(there, make, own), daemon=True)
            process.start()
            there.close()
            self._running.append((process, here))

    def __enter__(self) -> Processes:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the processes, whatever they do."""
        for process, connection in self._running:
            connection.close()
            process.terminate()
        for process, _ in self._running:
            process.join(10)

    def ask(self, method: str, *arguments: Any) -> list[Any]:
        """Call a method in every process at once and return what each returned.

        Raises:
            MeasurementError: one of them raised, or ended.
        """
        return self._ask(method, [arguments] * len(self._running))

    def ask_each(self, method: str, arguments: Sequence[Any]) -> list[Any]:
        """Call a method of one argument in every process at once, each with its own argument."""
        return self._ask(method, [(own,) for own in arguments])

    def _ask(self, method: str, arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        for (process, connection), own in zip(self._running, arguments, strict=True):
            try:
                connection.send((method, own))
            except OSError:
                raise _ended(process) from None
        answers = []
        for process, connection in self._running:
            try:
                answers.append(connection.recv())
            except EOFError:
                raise _ended(process) from None
        failures = [value for done, value in answers if not done]
        if failures:
            raise MeasurementError(failures[0])
        return [value for _, value in answers]


def _ended(process: Any) -> MeasurementError:
    process.join(10)
    return MeasurementError(
        f"a measuring process ended by itself (exit status {process.exitcode}"
        f"{': out of memory?' if process.exitcode == -signal.SIGKILL else ''})"
    )


def _serve(connection: Connection, make: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent to answer
    # What backends' C++ says here is for nobody; errors go back through the connection.
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
    served: Any = None
    while True:
        try:
            method, given = connection.recv()
        except (EOFError, OSError):
            return
        try:
            served = make(*arguments) if served is None else served
            connection.send((True, getattr(served, method)(*given)))
        except Exception as error:
            connection.send((False, f"{type(error).__name__}: {error}"))
