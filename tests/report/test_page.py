from __future__ import annotations

import html.parser
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cxr_spark.report.page import RunMeasures, imbalance_table, write_report

SCRIPT = "<script>alert(1)</script>"


def make_measures(**changes: object) -> RunMeasures:
    keys = {"preprocessing": "none", "weights": "imagenet", "demonstration": ""}
    rows = [
        {
            "configuration": f"{backbone}-none-{head}", "backbone": backbone, "head": head, **keys,
            "seed": seed, "n_train": 10, "n_val": 5, "n_test": 5, "val_auc": 0.99,
            "test_auc": 0.9 - i / 20, "test_auc_low": 0.88 - i / 20, "test_auc_high": 0.92 - i / 20,
            "test_keras_auc": 0.8, "test_accuracy": 0.8, "test_sensitivity": 0.7,
            "test_specificity": 0.9, "threshold": 0.5, "train_seconds": 1.0,
            "paper_test_keras_auc": 0.89,
        }
        for i, (backbone, head) in enumerate(
            (backbone, head) for backbone in ("ResNet50", "Xception") for head in ("gap", "fc1024")
        )
        for seed in (0, 1)
    ]  # fmt: skip
    results = pd.DataFrame(rows)
    summary = results.drop_duplicates("configuration").assign(
        n_seeds=2, test_auc_min=results["test_auc"], test_auc_max=results["test_auc"]
    )
    experiment = {
        "experiment": {
            "name": "a study", "image_size": [224, 224], "dataset": {"adapter": "kermany"},
            "split": {"unit": "patient", "validation_fraction": 0.1, "seed": 0}, "seeds": [0, 1],
            "standardise": False,
            "training": {
                "epochs": 3, "learning_rate": 0.001, "batch_size": 64, "early_stopping": None,
            },
        },
        "demonstration": "",
        "task": {"name": "pneumonia", "classes": ["NORMAL", "PNEUMONIA"], "positive": 1},
        "images": {
            "limit": None, "n_images": 21, "n_rows": 20, "n_errors": 1,
            "errors_by_stage": {"decode": 1},
            "errors": [{"image_id": f"train/{SCRIPT}.jpeg", "stage": "decode", "error": SCRIPT}],
            "by_split_and_finding": [{"split": "train", "finding": "NORMAL", "n": 10}],
            "patients_by_split": {"train": 8, "val": 3, "test": 4},
            "patients_in_two_splits": {"train-val": 0, "development-test": 2},
        },
        "extractions": [
            {
                "fingerprint": "f" * 16, "weights": "imagenet",
                "identity": {
                    "backbone": "ResNet50", "preprocessing": "none", "image_size": [224, 224],
                    "resize": "bilinear", "precision": "float32", "weights_digest": "d" * 64,
                    "contract": 2,
                },
            }
        ],
        "spark": {"version": "4.0.5", "default_parallelism": 2, "conf": {}},
        "versions": {"cxr_spark": "0.1.0", "python": "3.11"},
    }  # fmt: skip
    history = {"auc": [0.7, 0.8, 0.9], "val_auc": [0.7, 0.8, 0.85], "loss": [1, 1, 1]}
    line = np.linspace(0, 1, 5)
    fields = {
        "experiment": experiment,
        "results": results,
        "summary": summary,
        "histories": [history] * len(results),
        "roc_curves": [(line, np.sqrt(line))] * len(results),
        "class_counts": pd.DataFrame(
            {"train": [1214, 3495], "val": [135, 388], "test": [234, 390]}, ["NORMAL", "PNEUMONIA"]
        ),
    }
    return RunMeasures(**{**fields, **changes})  # type: ignore[arg-type]


class Links(html.parser.HTMLParser):
    """Collects what a page would load."""

    def __init__(self) -> None:
        super().__init__()
        self.sources: list[str] = []
        self.tags: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [value or "" for name, value in attributes if name in ("src", "href")]


@pytest.fixture
def page(tmp_path: Path) -> str:
    return write_report(tmp_path, make_measures()).read_text(encoding="utf-8")


def test_the_page_loads_nothing_and_runs_nothing(page: str) -> None:
    links = Links()
    links.feed(page)
    assert links.sources
    assert all(source.startswith("data:image/svg+xml;base64,") for source in links.sources)
    assert not {"script", "link", "iframe"} & set(links.tags)
    assert SCRIPT not in page
    assert "&lt;script&gt;" in page


def test_the_page_says_what_a_reader_needs(page: str) -> None:
    text = re.sub(r"\s+", " ", re.sub("<[^>]*>", "", page))
    for words in (
        "Not for clinical use", "0.900 (95 % interval 0.880 to 0.920), of ResNet50-none-gap",
        "made at 252 px, without the 16 images of val/", "0.890", "21 images were found",
        "20 were used and 1 could not be", "2 of the 4 in test stand outside test too",
        "ffffffffffffffff", "pyspark" if "pyspark" in text else "Spark", "seeds",
    ):  # fmt: skip
        assert words in text
    assert "Demonstration" not in text


def table_rows(page: str, heading: str) -> list[list[str]]:
    """Return the cells of the first table after a heading, without their tags."""
    table = page.partition(f"<h2>{heading}</h2>")[2].partition("</table>")[0]
    rows = re.findall(r"<tr>(.*?)</tr>", table.partition("<tbody>")[2], re.DOTALL)
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in rows]
    return [[re.sub("<[^>]*>", "", cell) for cell in row] for row in cells]


def test_the_identity_of_every_configurations_features_is_told(page: str) -> None:
    assert table_rows(page, "What was run") == [
        [
            "ResNet50-none-gap, ResNet50-none-fc1024", "ResNet50", "none", "224 x 224",
            "bilinear", "float32", "2", f"imagenet, {'d' * 64}", "f" * 16,
        ]
    ]  # fmt: skip


def test_a_demonstration_is_labelled_in_page_and_figures(tmp_path: Path) -> None:
    measures = make_measures()
    measures.experiment["demonstration"] = "Demonstration: phantoms."
    page = write_report(tmp_path, measures).read_text(encoding="utf-8")
    assert "Demonstration: phantoms." in page
    figures = list((tmp_path / "figures").glob("*.svg"))
    assert len(figures) == 1 + 4 + 2
    for figure in figures:
        assert "Demonstration" in figure.read_text(encoding="utf-8")


def test_imbalance_is_that_of_the_papers_table_1() -> None:
    development, test = imbalance_table(make_measures().class_counts, 1)
    assert development["counts"] == {"NORMAL": 1349, "PNEUMONIA": 3883}
    assert (development["n"], test["n"]) == (5232, 624)
    assert (round(development["ratio"], 2), round(test["ratio"], 2)) == (0.35, 0.60)
    smallest_to_largest = imbalance_table(make_measures().class_counts, None)
    assert smallest_to_largest[0]["ratio"] == pytest.approx(1349 / 3883)


def test_an_auc_below_one_is_never_shown_as_one(tmp_path: Path) -> None:
    measures = make_measures()
    results = measures.results.assign(val_auc=[1.0, 0.99951] * 4)
    page = write_report(tmp_path, make_measures(results=results)).read_text(encoding="utf-8")
    assert page.count("&gt; 0.999") == 4
    assert page.count("<td>1.000</td>") == 4


def test_intervals_that_do_not_overlap_name_no_rivals(tmp_path: Path) -> None:
    measures = make_measures()
    summary = measures.summary.assign(test_auc_high=measures.summary["test_auc"] + 0.001)
    summary = summary.assign(test_auc_low=summary["test_auc"] - 0.001)
    page = write_report(tmp_path, make_measures(summary=summary)).read_text(encoding="utf-8")
    assert "does not tell them apart" not in page


def test_the_same_measures_make_the_same_page(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for folder in (one, two):
        folder.mkdir()
        write_report(folder, make_measures())
    assert (one / "report.html").read_bytes() == (two / "report.html").read_bytes()
