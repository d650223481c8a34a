from __future__ import annotations

import pytest

from cxr_spark.dataset.tasks import make_task
from cxr_spark.errors import UserError

KERMANY = ["NORMAL", "BACTERIA", "VIRUS"]


def test_pneumonia_joins_bacteria_and_virus() -> None:
    task = make_task("pneumonia", KERMANY)
    assert task.labels(["VIRUS", "NORMAL", "BACTERIA"]).tolist() == [1, 0, 1]
    assert (task.classes, task.positive) == (("NORMAL", "PNEUMONIA"), 1)


def test_three_classes_have_no_positive() -> None:
    task = make_task("normal-bacteria-virus", KERMANY)
    assert task.labels(KERMANY).tolist() == [0, 1, 2]
    assert task.positive is None


def test_findings_are_classes_in_alphabetical_order() -> None:
    assert make_task("findings", ["b", "c", "a", "b"]).classes == ("a", "b", "c")
    two = make_task("findings", ["sick", "healthy"], positive="healthy")
    assert (two.classes, two.positive) == (("healthy", "sick"), 0)


@pytest.mark.parametrize(
    ("name", "findings", "positive", "message"),
    [
        ("pneumona", KERMANY, None, "Did you mean 'pneumonia'"),
        ("findings", ["a", "b"], None, "positive: to name one of the two classes a and b"),
        ("findings", ["a", "b"], "c", "positive to be one of a, b"),
        ("findings", ["a", "b", "c"], "c", "no positive: with 3 classes"),
        ("findings", ["a", "a"], None, "at least two classes"),
        ("pneumonia", KERMANY, "NORMAL", "no positive:"),
    ],
)
def test_mistakes_are_named(
    name: str, findings: list[str], positive: str | None, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        make_task(name, findings, positive)


def test_unknown_findings_are_named() -> None:
    with pytest.raises(UserError, match="Received: COVID"):
        make_task("pneumonia", KERMANY).labels(["NORMAL", "COVID"])
