from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from cxr_spark.report.model_card import write_model_card
from tests.report.test_page import SCRIPT, make_measures


def make_card(tmp_path: Path, **row: object) -> str:
    measures = make_measures()
    changed = {**measures.shown.row, "selected": True, "cv_auc": 0.987, **row}
    shown = dataclasses.replace(measures.shown, row=changed)
    measures = dataclasses.replace(measures, shown=shown)
    return write_model_card(tmp_path, measures, takes="pooled").read_text()


def test_the_card_says_what_it_is_how_good_and_where_not_to_use_it(tmp_path: Path) -> None:
    card = make_card(tmp_path)
    for said in (
        "# Model card: ResNet50-none-gap, seed 0",
        "Not for clinical use",
        "d" * 64,
        "by the highest held-out AUC",
        "| ROC AUC | 0.900 | 0.880 to 0.920 |",
        "| sensitivity at 0.500 | 80.0 % | 70.0 % to 90.0 % |",
        "| PPV at 0.500 |",
        "held out of its training the AUC was 0.987",
        "21 patients, by their names, stand both in the test part and outside it",
    ):
        assert said in card, said


def test_tables_of_the_card_are_whole(tmp_path: Path) -> None:
    lines = make_card(tmp_path).splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert len(table) == 2 + 1 + 5 + 3
    assert {line.count("|") for line in table} == {4}
    first = lines.index(table[0])
    assert lines[first : first + len(table)] == table


def test_what_was_not_selected_is_said_to_flatter(tmp_path: Path) -> None:
    card = make_card(tmp_path, selected=False, cv_auc=float("nan"))
    assert "which flatters" in card
    assert "held out" not in card


def test_names_are_escaped(tmp_path: Path) -> None:
    measures = make_measures()
    measures.experiment["task"]["classes"][0] = SCRIPT
    card = write_model_card(tmp_path, measures_with(measures), takes="pooled").read_text()
    assert SCRIPT not in card
    assert "&lt;script&gt;" in card


def measures_with(measures):
    row = {**measures.shown.row, "selected": False, "cv_auc": None}
    return dataclasses.replace(measures, shown=dataclasses.replace(measures.shown, row=row))


@pytest.mark.parametrize("notice", ["", "Demonstration: phantoms."])
def test_a_demonstration_is_labelled(tmp_path: Path, notice: str) -> None:
    measures = measures_with(make_measures())
    measures.experiment["demonstration"] = notice
    card = write_model_card(tmp_path, measures, takes="pooled").read_text()
    assert ("says how well it reads X-rays" in card) == bool(notice)
