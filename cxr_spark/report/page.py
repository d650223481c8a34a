"""One self-contained page of a run: table, figures, the images' account, and what was run."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pandas as pd
from markupsafe import Markup

from cxr_spark.files import refuse_links
from cxr_spark.report.figures import Curve, Picture, auc_bars, head_colours, panel
from cxr_spark.report.render import make_environment
from cxr_spark.report.style import COLOURS

# Where a curve is drawn, the curve, and the ends of its band: each of shape (n_points,).
Banded = tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any]]


@dataclass(frozen=True)
class Shown:
    """The configuration and seed that the page looks at closely.

    Attributes:
        row: its row of results.json.
        curves: of the positive class, or of each of more than two against the rest: its name;
            1 - specificity, and sensitivity with the ends of its band; recall, and precision with
            the ends of its band.
        n_drawings: of test patients, that the bands are made of.
        reliability: mean score and share of positives of each bin.
        wrong: a row for each of its worst errors: ``image_id``, ``truth``, ``called``, ``score``,
            and ``picture``, a data URI or None.
    """

    row: dict[str, Any]
    curves: Sequence[tuple[str, Banded, Banded]]
    n_drawings: int
    reliability: tuple[npt.NDArray[Any], npt.NDArray[Any]]
    wrong: Sequence[dict[str, Any]]


@dataclass(frozen=True)
class RunMeasures:
    """All that the report shows.

    Attributes:
        experiment: the content of experiment.json.
        results: results.csv, one row a configuration and seed.
        summary: one row a configuration.
        histories: of each row of ``results``: measures by epoch.
        roc_curves: of each row of ``results``: false and true positive rates; empty for more than
            two classes.
        rules: how measures are made: the fields of ``evaluation.rules.Rules``.
        class_counts: images by split (columns) and class (rows).
        shown: the selected configuration's first seed, or that of the highest test AUC.
        leaks: leaks.csv, pairs of images of two splits; None where they were not looked for.
        samples: training images: ``image_id``, ``truth``, ``finding``, and ``picture``, a data URI.
        published: test AUCs that others found on the same test images: ``test_auc``, ``model``,
            ``source``, and ``place``, above, below or inside the interval that the page says first.
        searches: of each tuned configuration, its name and what was searched: ``parameters``,
            ``auc`` and ``untuned_auc`` on held-out images, ``n_trials``, ``n_fits``, ``rule``.
        not_trained: configurations that were asked for and are not in the run folder.
        sources: whose heads are trained, and which of them.
    """

    experiment: dict[str, Any]
    results: pd.DataFrame
    summary: pd.DataFrame
    histories: Sequence[dict[str, list[float]]]
    roc_curves: Sequence[tuple[npt.NDArray[Any], npt.NDArray[Any]]]
    class_counts: pd.DataFrame
    rules: dict[str, Any]
    shown: Shown
    leaks: pd.DataFrame | None = None
    samples: Sequence[dict[str, Any]] = ()
    published: Sequence[dict[str, Any]] = ()
    searches: Sequence[dict[str, Any]] = ()
    not_trained: Sequence[str] = ()
    sources: Mapping[str, Sequence[str]] = field(default_factory=dict)


SHOWN_LEAKS = 20


def write_report(run: Path, measures: RunMeasures) -> Path:
    """Write ``report.html`` and ``figures/`` into a run folder and return the page's path.

    The page holds its figures and styles; it loads nothing. Every name in it is escaped, and the
    browser is told by its hash the one script that may run, which sorts the configurations.

    Raises:
        UserError: the run folder holds a link.
    """
    refuse_links(run, "run")
    notice = measures.experiment.get("demonstration", "")
    colours = head_colours(list(dict.fromkeys(measures.results["head"])))
    bars = auc_bars(measures.summary, colours, notice)
    learning = _learning_panels(measures, colours, notice)
    roc = _roc_panels(measures, colours, notice)
    close = _close_panels(measures, colours, notice)
    folder = run / "figures"
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.svg"):
        old.unlink()
    for picture in (bars, *learning, *roc, *close):
        # Names hold what the run folder says of its heads, and that may be anybody's.
        name = re.sub(r"[^\w.+-]", "_", picture.name)
        (folder / f"{name}.svg").write_bytes(picture.svg)
    environment = make_environment(image=_data_uri)
    script = files("cxr_spark.report").joinpath("sort.js").read_text(encoding="utf-8")
    page = environment.get_template("page.html").render(
        measures=measures,
        experiment=measures.experiment["experiment"],
        run=measures.experiment,
        notice=notice,
        rows=measures.summary.sort_values("test_auc", ascending=False, kind="stable").to_dict(
            "records"
        ),
        seed_rows=measures.results.to_dict("records"),
        answer=_answer(measures.summary),
        extractions=_extractions(measures),
        commands=_commands(measures.experiment.get("commands", [])),
        seconds=_seconds(measures),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        leaks=_first(measures.leaks),
        leak_counts=_leak_counts(measures.experiment.get("leaks")),
        imbalance=imbalance_table(measures.class_counts, measures.experiment["task"]["positive"]),
        bars=bars,
        learning=learning,
        roc=roc,
        close=close,
    )
    file = run / "report.html"
    file.write_text(page, encoding="utf-8")
    return file


def _answer(summary: pd.DataFrame) -> dict[str, Any]:
    """Return what the page says first.

    Returns:
        Where a configuration is ``selected``, its row, and the names of the others by whether test
        images tell them from it: ``alike``, ``better``, ``worse``, or ``untested`` where there is
        no p-value; ``next`` is the row of the next best held-out AUC, or None. Else ``best``, the
        row of the highest test AUC, and ``rivals``, whose intervals overlap with its own. In both
        ``aside``, the names of those not cross-validated.
    """
    aside = summary["configuration"][summary["cv_auc"].isna()].tolist()
    chosen = summary[summary["selected"]]
    if len(chosen):
        others = summary[~summary["selected"]]
        told, above = others["distinguishable"], others["difference"] > 0
        tested = others["p_holm"].notna()
        behind = others[others["cv_auc"].notna()].nlargest(1, "cv_auc")
        return {
            "selected": chosen.iloc[0].to_dict(),
            "next": behind.iloc[0].to_dict() if len(behind) else None,
            "aside": aside,
            "n_tests": int(tested.sum()),
            "untested": others["configuration"][~tested].tolist(),
            "alike": others["configuration"][tested & ~told].tolist(),
            "better": others["configuration"][told & above].tolist(),
            "worse": others["configuration"][told & ~above].tolist(),
        }
    best = summary.loc[summary["test_auc"].idxmax()]
    rivals = []
    if pd.notna(best["test_auc_low"]):
        within = summary[summary["test_auc_high"] >= best["test_auc_low"]]
        rivals = [name for name in within["configuration"] if name != best["configuration"]]
    return {"selected": None, "aside": aside, "best": best.to_dict(), "rivals": rivals}


def imbalance_table(class_counts: pd.DataFrame, positive: int | None) -> list[dict[str, Any]]:
    """Return images by class for training and validation together, and for test, with their ratio.

    The ratio is that of the seed paper's Table 1, negative to positive; for more than two classes
    the smallest to the largest.

    Args:
        class_counts: images by class (rows, in the order of labels) and split (columns).
        positive: index of the positive class, or None.
    """
    rows = []
    for name, splits in (("training + validation", ["train", "val"]), ("test", ["test"])):
        counts = class_counts[splits].sum(axis=1)
        if positive is None:
            ratio = counts.min() / counts.max()
        else:
            ratio = counts.iloc[1 - positive] / counts.iloc[positive]
        rows.append(
            {
                "part": name,
                "counts": counts.to_dict(),
                "n": int(counts.sum()),
                "ratio": float(ratio),
            }
        )
    return rows


def _extractions(measures: RunMeasures) -> list[dict[str, Any]]:
    """Return each extraction with the configurations that were trained on it."""
    summary = measures.summary
    rows = []
    for extraction in measures.experiment["extractions"]:
        of = extraction["identity"]
        same = [
            of["backbone"] in backbone.split("+") and of["preprocessing"] == preprocessing
            for backbone, preprocessing in zip(
                summary["backbone"], summary["preprocessing"], strict=True
            )
        ]
        rows.append({**extraction, "configurations": summary["configuration"][same].tolist()})
    return rows


def _commands(commands: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the different commands that made a run, each as given first, and how often."""
    rows: dict[str, dict[str, Any]] = {}
    for entry in commands:
        if entry["command"]:
            row = rows.setdefault(entry["command"], {**entry, "n": 0})
            row["n"] += 1
    return list(rows.values())


def _seconds(measures: RunMeasures) -> dict[str, float | None]:
    """Return the seconds of a run: of extraction and of all training where told, and of heads."""
    commands = measures.experiment.get("commands", [])
    found: dict[str, float | None] = {"heads": float(measures.results["train_seconds"].sum())}
    for name in ("extraction", "training"):
        told = [entry[f"{name}_seconds"] for entry in commands]
        known = [seconds for seconds in told if seconds is not None]
        found[name] = sum(known) if known else None
    return found


def _first(leaks: pd.DataFrame | None) -> list[dict[Any, Any]]:
    return [] if leaks is None else leaks.head(SHOWN_LEAKS).to_dict("records")


def _leak_counts(leaks: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Return a row for each pair of splits: pairs and images by pixels and by features."""
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for count in leaks["counts"] if leaks else ():
        key = (count["split_a"], count["split_b"])
        row = rows.setdefault(key, {"split_a": key[0], "split_b": key[1]})
        row[count["by"]] = {"n_pairs": count["n_pairs"], "n_images": count["n_images"]}
    return list(rows.values())


def _learning_panels(measures: RunMeasures, colours: dict[str, str], notice: str) -> list[Picture]:
    pictures = []
    for keys, rows in measures.results.reset_index().groupby(["configuration", "head"], sort=False):
        configuration, head = keys
        if not measures.histories[rows["index"].iloc[0]]:
            continue  # it has no epochs
        curves = []
        for index in rows["index"]:
            history = measures.histories[index]
            for key, label, dashed in (("auc", "training", False), ("val_auc", "validation", True)):
                epochs = np.arange(1, len(history[key]) + 1)
                curves.append(Curve(head, label, epochs, np.array(history[key]), dashed))
        pictures.append(
            panel(
                f"learning_{configuration}", configuration, curves, colours,
                x_label="epoch", y_label="AUC (Keras' metric)", notice=notice,
            )
        )  # fmt: skip
    return pictures


def _close_panels(measures: RunMeasures, colours: dict[str, str], notice: str) -> list[Picture]:
    """Draw precision by recall, and the share of positives by score, of what is shown closely."""
    shown, head = measures.shown, measures.shown.row["head"]
    two = measures.experiment["task"]["positive"] is not None
    calibration = panel(
        "reliability", "Calibration", [Curve(head, head, *shown.reliability, marked=True)],
        colours, x_label="mean score" if two else "mean of the highest score",
        y_label="share of positives" if two else "share called rightly", notice=notice,
        diagonal=True,
    )  # fmt: skip
    labels = [head] if two else [name for name, _, _ in shown.curves]
    by_class = colours if two else head_colours(labels)
    rocs = [_banded(label, roc) for label, (_, roc, _) in zip(labels, shown.curves, strict=True)]
    precisions = [
        _banded(label, curve) for label, (*_, curve) in zip(labels, shown.curves, strict=True)
    ]
    if two:
        sensitivity, specificity, precision = (
            np.array([shown.row[f"test_{name}"]]) for name in ("sensitivity", "specificity", "ppv")
        )
        at = "at the threshold"
        rocs.append(Curve(head, at, 1 - specificity, sensitivity, marked=True))
        precisions.append(Curve(head, at, sensitivity, precision, marked=True))
    by = "" if two else ", by class"
    roc = panel(
        "roc_band", f"ROC curve{by}", rocs, by_class, x_label="1 - specificity",
        y_label="sensitivity", notice=notice, diagonal=True,
    )  # fmt: skip
    precision_recall = panel(
        "precision_recall", f"Precision by recall{by}", precisions, by_class,
        x_label="sensitivity (recall)", y_label="PPV (precision)", notice=notice, unit_square=True,
    )  # fmt: skip
    return [roc, precision_recall, calibration]


def _banded(head: str, curve: Banded) -> Curve:
    x, y, low, high = curve
    return Curve(head, head, x, y, band=(low, high))


def _roc_panels(measures: RunMeasures, colours: dict[str, str], notice: str) -> list[Picture]:
    if not measures.roc_curves:
        return []
    pictures = []
    for keys, rows in measures.results.reset_index().groupby(
        ["backbone", "preprocessing"], sort=False
    ):
        backbone, preprocessing = keys
        curves = []
        for row in rows.to_dict("records"):
            x, y = measures.roc_curves[row["index"]]
            repeats = list(colours).index(row["head"]) >= len(COLOURS)
            curves.append(Curve(row["head"], row["head"], x, y, dashed=repeats))
        title = backbone if preprocessing == "none" else f"{backbone} ({preprocessing})"
        pictures.append(
            panel(
                f"roc_{backbone}-{preprocessing}", title, curves, colours, diagonal=True,
                x_label="1 - specificity", y_label="sensitivity", notice=notice,
            )
        )  # fmt: skip
    return pictures


def _data_uri(picture: Picture) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(picture.svg).decode()
