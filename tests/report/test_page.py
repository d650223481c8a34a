from __future__ import annotations

import base64
import hashlib
import html
import html.parser
import json
import re
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cxr_spark.errors import UserError
from cxr_spark.report.page import RunMeasures, Shown, imbalance_table, write_report

SCRIPT = "<script>alert(1)</script>"


def make_shown(results: pd.DataFrame) -> Shown:
    row = {
        **results.iloc[0].to_dict(), "n_test_patients": 4, "test_brier": 0.1, "test_ece": 0.05,
        "test_average_precision": 0.93, "test_balanced_accuracy": 0.8, "test_f1": 0.75,
        "confusion": [[3, 1], [0, 1]],
        "classes": [
            {"sensitivity": 0.75, "auc": 0.9, "auc_low": 0.88, "auc_high": 0.92},
            {"sensitivity": 1.0, "auc": 0.9, "auc_low": None, "auc_high": None},
        ],
    }  # fmt: skip
    for name in ("sensitivity", "specificity", "ppv", "npv", "accuracy"):
        row |= {f"test_{name}": 0.8, f"test_{name}_low": 0.7, f"test_{name}_high": 0.9}
        row[f"test_{name}_at_half"] = 0.85
    row |= {"test_f1_at_half": 0.7, "test_balanced_accuracy_at_half": 0.75}
    row |= {"test_auc_bootstrap_low": 0.81, "test_auc_bootstrap_high": 0.96}
    line = np.linspace(0, 1, 5)
    wrong = {"truth": "NORMAL", "called": "PNEUMONIA", "score": 0.999}
    return Shown(
        row, [("PNEUMONIA", (line, line, line, line), (line, line[::-1], line, line))], 1000,
        (line, line),
        [
            {"image_id": f"test/{SCRIPT}.jpeg", "picture": None, **wrong},
            {"image_id": "test/w.jpeg", "picture": "data:image/jpeg;base64,QQ==", **wrong},
        ],
    )  # fmt: skip


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
        test_auc_spread=0.004,
        seed_share=0.2,
        n_seeds=2, test_auc_min=results["test_auc"], test_auc_max=results["test_auc"],
        cv_auc=float("nan"), cv_spread=float("nan"), cv_difference_spread=float("nan"),
        selected=False, difference=float("nan"),
        p_holm=float("nan"), distinguishable=False,
    )  # fmt: skip
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
            "patients_in_two_splits": {"train-val": 0, "development-test": 21},
            "patients_outside_and_in_test": [
                {"patient_id": f"person{i}", "n_outside": 3 + i, "n_test": 1} for i in range(20)
            ],
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
        "leaks": {
            "extraction": "f" * 16, "backbone": "ResNet50", "threshold": 0.7,
            "n_images": 20, "n_compared": 20, "n_listed": 25,
            "counts": [
                {"split_a": a, "split_b": b, "by": by, "n_pairs": 100 + n, "n_images": 50 + n}
                for n, (by, a, b) in enumerate(
                    (by, a, b) for by in ("pixels", "features")
                    for a, b in (("train", "val"), ("train", "test"), ("val", "test"))
                )
            ],
        },
        "spark": {"version": "4.0.5", "default_parallelism": 2, "conf": {}},
        "commands": [
            {"command": "spark-submit jobs/grid.py", "began": "2026-01-02 03:04:05+00:00",
             "extraction_seconds": seconds, "training_seconds": 20.5}
            for seconds in (61.25, 0.5)
        ],
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
        "shown": make_shown(results),
        "rules": {
            "positive": 1,
            "threshold": "youden",
            "calibration": None,
            "n_resamples": 2000,
            "selection": "the highest held-out AUC",
        },
        "leaks": pd.DataFrame(
            {
                "split_a": "train",
                "image_a": [f"train/a{i:02d}.jpeg" for i in range(25)],
                "split_b": "test",
                "image_b": [f"test/b{i:02d}.jpeg" for i in range(25)],
                "by": ["pixels"] + ["features"] * 24,
                "similarity": [1.0] + [0.8125] * 24,
            }
        ),
        "samples": [
            {
                "image_id": f"train/{SCRIPT}.jpeg",
                "truth": "PNEUMONIA",
                "finding": "VIRUS",
                "picture": "data:image/jpeg;base64,QQ==",
            },
        ],
        "published": [
            {"test_auc": auc, "model": "a model", "source": "a paper", "place": place}
            for auc, place in ((0.968, "above"), (0.901, "inside"))
        ],
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


def test_the_page_loads_nothing_and_runs_its_own_script_alone(page: str) -> None:
    links = Links()
    links.feed(page)
    assert links.sources
    assert all(
        source.startswith(("data:image/svg+xml;base64,", "data:image/jpeg;base64,"))
        for source in links.sources
    )
    assert not {"link", "iframe"} & set(links.tags)
    assert links.tags.count("script") == 1
    script = page.partition("<script>")[2].partition("</script>")[0]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert "sortBy" in script
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    assert f"{policy}script-src 'sha256-{digest}'" in page
    assert SCRIPT not in page
    assert "&lt;script&gt;" in page


HOSTILE = """'"><img src=x onerror=alert(1)></td><script>alert(2)</script>&lt;{{ 7 * 7 }}"""


def planted(content: object) -> object:
    """Return the same content with something hostile at the end of every name and reason in it."""
    if isinstance(content, dict):
        return {key: planted(value) for key, value in content.items()}
    if isinstance(content, list):
        return [planted(value) for value in content]
    return content + HOSTILE if isinstance(content, str) else content


class Outline(html.parser.HTMLParser):
    """Collects what a page is made of: its tags with their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, list[str]]] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, [name for name, _ in attributes]))

    def handle_data(self, text: str) -> None:
        self.text += text


def test_names_and_reasons_stay_text_wherever_they_stand(tmp_path: Path) -> None:
    """File names, reasons, classes, settings: whatever comes of a folder or a record."""
    plain, hostile = make_measures(), make_measures()
    images = hostile.experiment["images"]
    for key in ("errors", "errors_by_stage"):
        images[key] = planted(images[key])
    for row in images["by_split_and_finding"]:
        row["finding"] += HOSTILE
    for row in images["patients_outside_and_in_test"]:
        row["patient_id"] += HOSTILE
    for key in ("task", "extractions", "spark", "versions", "commands"):
        hostile.experiment[key] = planted(hostile.experiment[key])
    hostile.experiment["experiment"]["name"] += HOSTILE
    classes = hostile.experiment["task"]["classes"]
    counts = hostile.class_counts.set_axis(classes, axis="index")
    assert hostile.leaks is not None
    leaks = hostile.leaks.copy()
    for column in ("image_a", "image_b"):
        leaks[column] += HOSTILE
    (sample,) = hostile.samples
    samples = [{key: v if key == "picture" else planted(v) for key, v in sample.items()}]
    measures = make_measures(
        experiment=hostile.experiment, class_counts=counts, leaks=leaks, samples=samples
    )
    expected, found = (
        Outline(write_report(tmp_path, m).read_text(encoding="utf-8")) for m in (plain, measures)
    )
    assert found.tags == expected.tags
    assert found.text.count(HOSTILE) >= 80


def text_of(page: str) -> str:
    """Return what a page says, cells apart."""
    without_tags = re.sub("<[^>]*>", "", re.sub("</t[dh]>", " ", page))
    return html.unescape(re.sub(r"\s+", " ", without_tags))


def test_the_page_says_what_a_reader_needs(page: str) -> None:
    text = text_of(page)
    for words in (
        "Not for clinical use", "0.900 (95 % interval 0.880 to 0.920), of ResNet50-none-gap",
        "made at 252 px, without the 16 images of val/", "0.890", "21 images were found",
        "20 were used and 1 could not be", "21 of the 4 in test stand outside test too",
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


def test_leaks_are_counted_and_the_first_are_listed(page: str) -> None:
    heading = "Images and patients in two splits"
    assert table_rows(page, heading) == [
        ["train and val", "100", "50", "103", "53"],
        ["train and test", "101", "51", "104", "54"],
        ["val and test", "102", "52", "105", "55"],
    ]
    assert "test/b00.jpeg" in page
    assert "test/b19.jpeg" in page
    assert "test/b20.jpeg" not in page
    assert "The first 20 of 25 in leaks.csv" in page
    assert '<td class="reason">person19</td><td>22</td><td>1</td>' in page
    assert "The first 20 of 21 patients on both sides" in page
    assert "An even sample" not in page


@pytest.mark.parametrize(
    ("n_compared", "told"),
    [(12, "An even sample of 12 of the 20 images"), (0, "Features were not compared")],
)
def test_what_was_not_compared_is_told(tmp_path: Path, n_compared: int, told: str) -> None:
    measures = make_measures()
    measures.experiment["leaks"]["n_compared"] = n_compared
    page = write_report(tmp_path, measures).read_text(encoding="utf-8")
    assert told in re.sub(r"<[^>]*>", "", page)
    assert ("103" in page) == bool(n_compared)


def test_a_run_of_before_leaks_were_looked_for_says_so(tmp_path: Path) -> None:
    measures = make_measures(leaks=None)
    del measures.experiment["leaks"], measures.experiment["images"]["patients_outside_and_in_test"]
    page = write_report(tmp_path, measures).read_text(encoding="utf-8")
    assert "Images were not compared across splits" in page
    assert "patient, by name" not in page


def test_a_demonstration_is_labelled_in_page_and_figures(tmp_path: Path) -> None:
    measures = make_measures()
    measures.experiment["demonstration"] = "Demonstration: phantoms."
    page = write_report(tmp_path, measures).read_text(encoding="utf-8")
    assert "Demonstration: phantoms." in page
    figures = list((tmp_path / "figures").glob("*.svg"))
    assert len(figures) == 1 + 4 + 2 + 3
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


def test_figures_stay_in_their_folder_whatever_a_head_is_called(tmp_path: Path) -> None:
    measures = make_measures()
    results = measures.results.assign(backbone="x/../../../evil")
    run = tmp_path / "a" / "run"
    (run / "figures" / "roc_x").mkdir(parents=True)
    write_report(run, make_measures(results=results))
    assert not list(tmp_path.glob("*evil*"))
    assert not list((tmp_path / "a").glob("*evil*"))
    assert list((run / "figures").glob("roc_x_.._.._.._evil*.svg"))


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


def select_second(summary: pd.DataFrame, p_holm: list[float]) -> pd.DataFrame:
    """Select the second configuration; the others have the given p-values."""
    p_values = np.insert(p_holm, 1, np.nan)
    return summary.assign(
        selected=np.arange(4) == 1,
        cv_auc=[0.98, 0.99, 0.97, np.nan],
        cv_spread=0.004,
        cv_difference_spread=[0.0021, np.nan, 0.003, np.nan],
        difference=summary["test_auc"] - summary["test_auc"].iloc[1],
        p_holm=p_values,
        distinguishable=p_values < 0.05,
    )


def test_the_answer_is_the_selected_configuration_and_not_the_highest(tmp_path: Path) -> None:
    summary = select_second(make_measures().summary, [0.0004, 0.2, 0.01])
    page = write_report(tmp_path, make_measures(summary=summary)).read_text()
    text = text_of(page)
    for said in (
        "Selected on training images alone: ResNet50-none-fc1024.",
        "its ROC AUC is 0.850 (95 % interval 0.830 to 0.870)",
        "do not tell 1 other configuration from it: Xception-none-gap.",
        "They find 1 better: ResNet50-none-gap.",
        "1 is worse.",
        "1 took no part in the selection, not being cross-validated: Xception-none-fc1024.",
        "Over its 2 seeds the test AUC has a standard deviation of 0.004, which is 20.0 %",
        "corrected for 3 tests (Holm)",
        "held out of its training its AUC was 0.990 (standard deviation over folds 0.004), on the "
        "test images it is 0.140 lower",
        "The next on the same folds, ResNet50-none-gap, was 0.0100 lower (standard deviation of "
        "the difference over folds 0.0021).",
        "Selected is the highest held-out AUC; this rule reads no test image.",
        "+0.050 < 0.001",
        "0.200 *",
    ):
        assert said in text, said
    assert "so it flatters" not in text


def test_without_a_selection_the_highest_is_said_to_flatter(tmp_path: Path) -> None:
    text = text_of(write_report(tmp_path, make_measures()).read_text())
    assert "No configuration was selected on training images" in text
    assert "Holm" not in text


def test_the_shown_configuration_is_told_at_its_threshold(tmp_path: Path) -> None:
    text = text_of(write_report(tmp_path, make_measures()).read_text())
    for said in (
        "The configuration of the highest test AUC: ResNet50-none-gap, seed 0",
        "on 5 test images of 4 patients",
        "positive predictive value 80.0 % 70.0 % to 90.0 % 85.0 %",
        "balanced accuracy 80.0 % 75.0 %",
        "F1 0.750 0.700",
        "the middle 95 % of 2000 drawings of test patients are 0.810 to 0.960.",
        "is NORMAL 3 1 75.0 % 0.900 (0.880 to 0.920)",
        "is PNEUMONIA 0 1 100.0 % 0.900",
        "Brier score 0.100, expected calibration error 0.050",
        f"is NORMAL, called PNEUMONIA by 0.999test/{SCRIPT}.jpeg",
    ):
        assert said in text, said
    drawn = {file.stem for file in (tmp_path / "figures").iterdir()}
    assert {"reliability", "precision_recall", "roc_band"} <= drawn


def test_what_could_not_be_tested_is_not_said_to_be_alike(tmp_path: Path) -> None:
    summary = select_second(make_measures().summary, [0.0004, float("nan"), 0.01])
    text = text_of(write_report(tmp_path, make_measures(summary=summary)).read_text())
    assert "1 could not be tested." in text
    assert text.count("not tested") == 1
    assert "do not tell" not in text
    assert "corrected for 2 tests" in text


def test_patients_are_not_spoken_of_where_images_tell_none(tmp_path: Path) -> None:
    summary = select_second(make_measures().summary, [0.0004, 0.2, 0.01])
    measures = make_measures(summary=summary)
    measures.experiment["images"]["patients_by_split"] = {"train": 0, "val": 0, "test": 0}
    text = text_of(write_report(tmp_path, measures).read_text())
    assert "clustered by patient" not in text
    assert "takes every image for a patient of its own" in text
    assert "on 5 test images at the threshold" in text


def test_what_ran_is_told_with_its_commands_and_times(page: str) -> None:
    text = text_of(page)
    for said in (
        "To run it again: spark-submit jobs/grid.py "
        "Its training began at 2026-01-02 03:04:05+00:00; "
        "given 2 times.",
        "extraction 61.8 s, training 8.0 s added over 8 heads, by the clock 41.0 s",
    ):
        assert said in text, said


def test_a_run_of_before_commands_were_kept_says_so(tmp_path: Path) -> None:
    measures = make_measures()
    del measures.experiment["commands"]
    text = text_of(write_report(tmp_path, measures).read_text(encoding="utf-8"))
    assert "The command was not stored" in text
    assert "training 8.0 s added over 8 heads" in text


def test_samples_and_published_figures_are_shown_where_there_are_any(tmp_path: Path) -> None:
    measures = make_measures()
    text = text_of(write_report(tmp_path, measures).read_text(encoding="utf-8"))
    assert "train, PNEUMONIA: VIRUS" in text
    assert f"train/{SCRIPT}.jpeg" in text
    assert "0.968 (a model; a paper), which is above this interval, and" in text
    assert "0.901 (a model; a paper), which is inside this interval." in text
    without = make_measures(samples=[], published=[])
    text = text_of(write_report(tmp_path, without).read_text(encoding="utf-8"))
    assert "of the training part" not in text
    assert "others found" not in text


CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")


def columns_after(page: Path, steps: list[tuple[list[int], int]]) -> list[list[str]]:
    """Return columns of the configurations as a browser shows them.

    Args:
        page: the page.
        steps: of each, which heads are clicked one after the other, and the column to return.
    """
    # Without the policy, which lets no other script run: this one stands for the reader's hand.
    text = re.sub("<meta http-equiv[^>]*>", "", page.read_text(encoding="utf-8"))
    beside = page.with_name("clicked.html")
    script = f"""
      const found = {json.dumps(steps)}.map(([clicks, column]) => {{
        const heads = document.querySelectorAll("table.sortable th button");
        for (const head of clicks) heads[head].click();
        const rows = [...document.querySelectorAll("table.sortable tbody tr")];
        return rows.map((row) => row.cells[column].textContent.trim());
      }});
      document.body.textContent = "found" + JSON.stringify(found) + "end";
    """
    beside.write_text(
        text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8"
    )
    done = subprocess.run(
        [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom", str(beside)],
        capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    shown = html.unescape(done.stdout).partition("<body>found")[2].partition("end")[0]
    columns: list[list[str]] = json.loads(shown)
    return columns


@pytest.mark.skipif(CHROMIUM is None, reason="no browser is installed")
def test_a_click_sorts_by_value_and_what_is_missing_comes_last(tmp_path: Path) -> None:
    summary = make_measures().summary.assign(val_auc=[0.9, float("nan"), 0.99996, 0.99991])
    page = write_report(tmp_path, make_measures(summary=summary))
    head, test, validation = 1, 2, 5
    steps = [
        ([], validation), ([validation], validation), ([], head), ([validation], validation),
        ([head], head), ([], test), ([head], head), ([], test), ([test], test),
    ]  # fmt: skip
    assert columns_after(page, steps) == [
        ["0.900", "", "> 0.999", "> 0.999"],
        ["> 0.999", "> 0.999", "0.900", ""],
        ["gap", "fc1024", "gap", "fc1024"],
        ["0.900", "> 0.999", "> 0.999", ""],
        ["fc1024", "fc1024", "gap", "gap"],
        ["0.750", "0.850", "0.900", "0.800"],
        ["gap", "gap", "fc1024", "fc1024"],
        ["0.900", "0.800", "0.750", "0.850"],
        ["0.900", "0.850", "0.800", "0.750"],
    ]


def test_a_run_folder_that_leads_elsewhere_is_refused_and_nothing_there_is_touched(
    tmp_path: Path,
) -> None:
    elsewhere, run = tmp_path / "pictures", tmp_path / "run"
    for folder in (elsewhere, run):
        folder.mkdir()
    (elsewhere / "mine.svg").touch()
    (run / "figures").symlink_to(elsewhere)
    with pytest.raises(UserError, match="--run to hold no links"):
        write_report(run, make_measures())
    assert [file.name for file in elsewhere.iterdir()] == ["mine.svg"]
