"""The benchmark: its sections one after another, their table, the JSON and the plot."""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cxr_spark.benchmark.engine import measure_engine
from cxr_spark.benchmark.images import image_sets
from cxr_spark.benchmark.machine import choose_backend, describe_machine
from cxr_spark.benchmark.plot import write_plot
from cxr_spark.benchmark.rows import MeasurementError, Row, failed_row, format_table
from cxr_spark.benchmark.settings import Settings, read_settings
from cxr_spark.files import write_json

log = logging.getLogger(__name__)


def run_benchmark(given: dict[str, Any], jobs: Path) -> None:
    """Measure what the flags ask for; print a table, store JSON and a plot.

    Args:
        given: the job's flags by field name; None where not given.
        jobs: the folder of the jobs, which are measured against peers as users start them.
    """
    settings = read_settings(given)
    choose_backend()
    if settings.extracts or settings.submits:  # executors share folders with the driver
        from cxr_spark.benchmark.ours import check_scratch

        check_scratch()
    report = Report(settings)
    with tempfile.TemporaryDirectory(prefix="cxr_spark-bench-") as folder:
        sets = image_sets(settings, Path(folder))
        core_rates: dict[tuple[str, str], float] = {}
        if "engine" in settings.sections:
            try:
                engine = measure_engine(settings, sets)
                core_rates = engine.core_rates
                report.device(engine.device)
                report.add(engine.rows)
            except MeasurementError as error:
                report.add([failed_row("engine", error)])
        if not given["engine_only"]:
            from cxr_spark.benchmark.spark_sections import run_spark_sections

            run_spark_sections(settings, sets, Path(folder), jobs, core_rates, report.add)
    report.finish()


class Report:
    """The rows so far; stored after each section, so that an interruption loses only one."""

    def __init__(self, settings: Settings) -> None:
        """Describe the machine, and replace what an earlier benchmark left in the files."""
        self._settings = settings
        self._machine = describe_machine()
        self._rows: list[Row] = []
        self._store(complete=False)
        if settings.out is not None:
            settings.out.with_suffix(".png").unlink(missing_ok=True)

    def device(self, device: dict[str, str]) -> None:
        """Take what the engine section computed on."""
        self._machine["device"] = device

    def add(self, rows: Sequence[Row]) -> None:
        """Print the rows of a section and store all so far."""
        self._rows += rows
        print(f"\n{format_table(rows)}\n", flush=True)
        self._store(complete=False)

    def finish(self) -> None:
        """Store the whole and draw the plot."""
        self._store(complete=True)
        if self._settings.out is None:
            return
        plot, machine = self._settings.out.with_suffix(".png"), self._machine
        title = f"{machine['cores']} cores, {machine['processor']}"
        if machine["device"]:
            title += f"; {machine['device']['name']}, Keras on {machine['device']['backend']}"
        drawn = write_plot(plot, self._rows, title)
        log.info("stored: %s%s", self._settings.out, f" and {plot}" if drawn else "")

    def _store(self, *, complete: bool) -> None:
        if self._settings.out is None:
            return
        content = {
            "complete": complete,
            "machine": self._machine,
            "settings": dataclasses.asdict(self._settings),
            "rows": [dataclasses.asdict(row) for row in self._rows],
        }
        write_json(self._settings.out, content)
