"""What is to be told apart: the class index that a task makes of each finding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cxr_spark.errors import UserError, one_of


@dataclass(frozen=True)
class Task:
    """Classes in the order of their index, and the index of each finding.

    Attributes:
        positive: index of the class whose score is the score of a two-class task; None for more
            classes.
    """

    name: str
    classes: tuple[str, ...]
    label_of_finding: Mapping[str, int]
    positive: int | None

    def labels(self, findings: Sequence[str]) -> npt.NDArray[np.int64]:
        """Return int64 of shape (n_images,): the class index of each finding.

        Raises:
            UserError: a finding has no class in this task.
        """
        unknown = sorted(set(findings) - set(self.label_of_finding))
        if unknown:
            raise UserError(
                f"Expected findings of the task {self.name}: {', '.join(self.label_of_finding)}. "
                f"Received: {', '.join(unknown[:5])}. "
                "Choose another task:, or findings for one class a folder."
            )
        return np.array([self.label_of_finding[f] for f in findings], np.int64)


PNEUMONIA = Task(
    "pneumonia",
    ("NORMAL", "PNEUMONIA"),
    {"NORMAL": 0, "BACTERIA": 1, "VIRUS": 1, "PNEUMONIA": 1},
    1,
)
NORMAL_BACTERIA_VIRUS = Task(
    "normal-bacteria-virus",
    ("NORMAL", "BACTERIA", "VIRUS"),
    {"NORMAL": 0, "BACTERIA": 1, "VIRUS": 2},
    None,
)
TASK_NAMES = (PNEUMONIA.name, NORMAL_BACTERIA_VIRUS.name, "findings")


def make_task(name: str, findings: Sequence[str], positive: str | None = None) -> Task:
    """Return the task ``name``; ``findings`` makes each finding present a class, alphabetically.

    Args:
        name: one of ``TASK_NAMES``.
        findings: the findings of the images at hand, repeated or not.
        positive: the class whose score counts, required where ``findings`` makes two classes.

    Raises:
        UserError: the task is unknown, fewer than two classes are present, or ``positive`` is
            missing or none of the classes.
    """
    if name not in TASK_NAMES:
        raise one_of("task", name, TASK_NAMES)
    if name != "findings":
        task = PNEUMONIA if name == PNEUMONIA.name else NORMAL_BACTERIA_VIRUS
        if positive is not None and (
            task.positive is None or positive != task.classes[task.positive]
        ):
            raise UserError(
                f"Expected no positive: with the task {name}. Received: positive={positive!r}"
            )
        return task
    classes = tuple(sorted(set(findings)))
    if len(classes) < 2:
        raise UserError(
            f"Expected images of at least two classes. Received: {', '.join(classes) or 'none'}"
        )
    if len(classes) == 2 and positive is None:
        raise UserError(
            f"Expected positive: to name one of the two classes {classes[0]} and {classes[1]}. "
            "Received: nothing"
        )
    if len(classes) > 2 and positive is not None:
        raise UserError(
            f"Expected no positive: with {len(classes)} classes. Received: positive={positive!r}"
        )
    if positive is not None and positive not in classes:
        raise one_of("positive", positive, classes)
    index = {finding: i for i, finding in enumerate(classes)}
    return Task(name, classes, index, index[positive] if positive and len(classes) == 2 else None)
