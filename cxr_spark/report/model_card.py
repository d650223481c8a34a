"""A model card, in Markdown, of the configuration that the page looks at closely."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from cxr_spark.report.render import make_environment

if TYPE_CHECKING:
    from cxr_spark.report.page import RunMeasures


def write_model_card(run: Path, measures: RunMeasures, *, takes: str) -> Path:
    """Write ``model_card.md`` into a run folder and return its path.

    Args:
        run: the run folder.
        measures: what the page shows.
        takes: what the head takes, 'pooled' or 'feature_map'.
    """
    row = measures.shown.row
    extractions = _extractions_of(measures.experiment["extractions"], row)
    environment = make_environment()
    text = environment.get_template("model_card.md").render(
        measures=measures,
        run=measures.experiment,
        notice=measures.experiment.get("demonstration", ""),
        row=row,
        takes=takes,
        extractions=extractions,
        two_classes=measures.experiment["task"]["positive"] is not None,
        selected=bool(row["selected"]),
    )
    file = run / "model_card.md"
    file.write_text(text, encoding="utf-8")
    return file


def _extractions_of(extractions: list[dict[str, Any]], row: dict[str, Any]) -> list[dict[str, Any]]:
    """Return what a row was trained on: one extraction or several; of an average, all."""
    of = [
        extraction
        for extraction in extractions
        if extraction["identity"]["backbone"] in row["backbone"].split("+")
        and extraction["identity"]["preprocessing"] == row["preprocessing"]
    ]
    return of or extractions
