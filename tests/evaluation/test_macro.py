"""The macro AUC of three classes: how sure it is, and whether two configurations' differ."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from scipy.optimize import brentq
from scipy.stats import binom, norm

from cxr_spark.evaluation.auc import macro_auc
from cxr_spark.evaluation.bootstrap import (
    draw_patients,
    drawn_difference,
    drawn_interval,
    macro_aucs,
    percentile_interval,
)
from cxr_spark.evaluation.intervals import difference_of, estimate_aucs, interval_of
from tests.conftest import FULL

# The official test part of Kermany's X-rays as three classes: by number of images, how many
# patients have so many. One more patient has 8 images of bacteria and one of a virus.
NORMAL = {1: 220, 2: 1, 3: 4}
BACTERIA = {1: 16, 2: 15, 3: 18, 4: 11, 5: 10, 6: 4, 7: 1, 9: 1}
VIRUS = {1: 109, 2: 14, 3: 1, 7: 1}
# How far each class stands from the others, relatively: a normal X-ray is told most easily.
STRENGTHS = np.array([1.3, 1.0, 0.8])


def make_three_classes() -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Return class and patient of each image of the official test part."""
    n_each = [
        (label, n)
        for label, layout in enumerate((NORMAL, BACTERIA, VIRUS))
        for n, n_patients in layout.items()
        for _ in range(n_patients)
    ]
    labels = np.repeat([label for label, _ in n_each], [n for _, n in n_each])
    patients = np.repeat(np.arange(len(n_each)), [n for _, n in n_each])
    mixed = [len(n_each)] * 9
    return np.append(labels, [1] * 8 + [2]), np.append(patients, mixed)


def true_aucs(shifts: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the AUC of each class against the rest in ``make_scores``.

    There an image of class c scores 2/3 of its shift for c, and one of class k a third of its own
    less than nothing; either with a variance of 2/3.
    """
    n = np.bincount(make_three_classes()[0])
    aucs = []
    for c in range(3):
        others = [k for k in range(3) if k != c]
        against = [norm.cdf((2 * shifts[c] + shifts[k]) / 3 / np.sqrt(4 / 3)) for k in others]
        aucs.append(np.average(against, weights=n[others]))
    return np.array(aucs)


def shifts_for(auc: float) -> npt.NDArray[np.float64]:
    """Return the shifts of which the macro AUC is ``auc``."""
    found: npt.NDArray[np.float64] = STRENGTHS * brentq(
        lambda scale: true_aucs(STRENGTHS * scale).mean() - auc, 0.1, 20
    )
    return found


def make_scores(
    rng: np.random.Generator,
    labels: npt.NDArray[np.int64],
    shared: npt.NDArray[np.float64],
    shifts: npt.NDArray[np.float64],
) -> npt.NDArray[np.float64]:
    """Return scores of one configuration, whose errors are in part those of all (correlation 0.67).

    Rows are centred, so that a class' score falls where another's rises, as softmax makes it.
    """
    noise = (shared + 0.7 * rng.normal(size=shared.shape)) / np.sqrt(1.49)
    logits = noise + np.eye(3)[labels] * shifts
    centred: npt.NDArray[np.float64] = logits - logits.mean(axis=1, keepdims=True)
    return centred


def make_shared(
    rng: np.random.Generator, patients: npt.NDArray[np.int64], correlation: float
) -> npt.NDArray[np.float64]:
    """Return what the X-rays themselves make hard, images of a patient correlated."""
    of_patient = rng.normal(size=(patients.max() + 1, 3))[patients]
    of_image = rng.normal(size=of_patient.shape)
    shared: npt.NDArray[np.float64] = (
        np.sqrt(correlation) * of_patient + np.sqrt(1 - correlation) * of_image
    )
    return shared


def test_the_truth_of_the_simulation_is_what_many_images_have(rng: np.random.Generator) -> None:
    labels = np.tile(make_three_classes()[0], 200)
    shifts = shifts_for(0.9)
    scores = make_scores(rng, labels, rng.normal(size=(len(labels), 3)), shifts)
    assert true_aucs(shifts).mean() == pytest.approx(0.9)
    assert macro_auc(labels, scores) == pytest.approx(0.9, abs=0.003)


@pytest.mark.parametrize(
    ("n_studies", "n_drawings", "auc", "correlation"),
    [
        (400, 100, 0.85, 0.0),
        (400, 100, 0.95, 0.6),
        *(
            pytest.param(2000, 400, auc, correlation, marks=FULL)
            for auc in (0.85, 0.95)
            for correlation in (0.0, 0.6)
        ),
    ],
)
def test_intervals_and_paired_tests_keep_their_level_in_the_official_layout(
    n_studies: int, n_drawings: int, auc: float, correlation: float
) -> None:
    """Intervals cover 95 %, and of two as good as each other 5 % differ, within what is asked."""
    labels, patients = make_three_classes()
    assert np.bincount(labels).tolist() == [234, 242, 148]
    assert patients.max() + 1 == 427
    rng = np.random.default_rng(3)
    weights = draw_patients(labels, patients, n_resamples=n_drawings).weights
    shifts, covered, refused = shifts_for(auc), 0, 0
    for _ in range(n_studies):
        shared = make_shared(rng, patients, correlation)
        two = [make_scores(rng, labels, shared, shifts) for _ in range(2)]
        values = [macro_auc(labels, scores) for scores in two]
        drawn = [macro_aucs(labels, scores, weights) for scores in two]
        interval = drawn_interval(values[0], drawn[0], 126)
        covered += interval.low <= auc <= interval.high
        refused += drawn_difference(*values, drawn[0] - drawn[1], 126).p_value < 0.05
    print(f"AUC {auc}, correlation {correlation}: {covered / n_studies}, {refused / n_studies}")
    if n_studies == 2000:
        assert 0.93 <= covered / n_studies <= 0.97
        assert 0.03 <= refused / n_studies <= 0.07
    else:  # within what chance makes of 95 and 5 % in all but one of 1,000 such tests
        least, most = binom.ppf([0.0005, 0.9995], n_studies, 0.05)
        assert least <= n_studies - covered <= most
        assert least <= refused <= most


def slow_influence(
    labels: npt.NDArray[np.int64], patients: npt.NDArray[np.int64], scores: npt.NDArray[np.float64]
) -> npt.NDArray[np.float64]:
    """Return what each patient adds to the macro AUC's error, pairs of images written out."""
    found = np.zeros(patients.max() + 1)
    for c in range(scores.shape[1]):
        positive, negative = np.flatnonzero(labels == c), np.flatnonzero(labels != c)
        s = scores[:, c]
        above = (s[positive][:, None] > s[negative]) + (s[positive][:, None] == s[negative]) / 2
        auc = above.mean()
        np.add.at(found, patients[positive], (above.mean(axis=1) - auc) / len(positive))
        np.add.at(found, patients[negative], (above.mean(axis=0) - auc) / len(negative))
    return found / scores.shape[1]


@pytest.mark.parametrize("correlation", [0.0, 0.6])
def test_errors_over_drawings_are_those_of_the_clustered_formula_nearly(
    rng: np.random.Generator, correlation: float
) -> None:
    """Of the macro AUC and of a difference, to within 8 %: drawings alone leave 1.6 %."""
    labels, patients = make_three_classes()
    shared, shifts = make_shared(rng, patients, correlation), shifts_for(0.9)
    one, other = (make_scores(rng, labels, shared, shifts) for _ in range(2))
    weights = draw_patients(labels, patients, n_resamples=2000).weights
    drawn = [macro_aucs(labels, scores, weights) for scores in (one, other)]
    influence = [slow_influence(labels, patients, scores) for scores in (one, other)]
    for resampled, of_patients in (
        (drawn[0], influence[0]),
        (drawn[0] - drawn[1], influence[0] - influence[1]),
    ):
        assert np.std(resampled) == pytest.approx(np.sqrt(np.sum(of_patients**2)), rel=0.08)


def test_of_two_classes_it_is_the_two_class_interval_nearly(rng: np.random.Generator) -> None:
    """With two columns that mirror each other the macro AUC is the AUC."""
    labels, patients = make_three_classes()
    labels = (labels > 0).astype(np.int64)
    margins = [rng.normal(size=624) + 2 * labels for _ in range(2)]
    two = [np.stack([-margin, margin], axis=1) for margin in margins]
    weights = draw_patients(labels, patients, n_resamples=2000).weights
    drawn = [macro_aucs(labels, scores, weights) for scores in two]
    values = [macro_auc(labels, scores) for scores in two]
    estimate = estimate_aucs(labels == 1, [[margin] for margin in margins], patients)
    expected, found = interval_of(estimate, 0), drawn_interval(values[0], drawn[0], 202)
    assert (found.auc, found.low, found.high) == pytest.approx(
        (expected.auc, expected.low, expected.high), abs=0.002
    )
    test = drawn_difference(*values, drawn[0] - drawn[1], 202)
    formula = difference_of(estimate, 0, 1)
    assert (test.difference, test.low, test.high) == pytest.approx(
        (formula.difference, formula.low, formula.high), abs=0.002
    )
    assert test.p_value == pytest.approx(formula.p_value, abs=0.03)


@pytest.mark.parametrize(("sign", "auc"), [(1, 1.0), (-1, 0.0)])
def test_perfect_and_reversed_scores_have_the_two_class_interval(sign: int, auc: float) -> None:
    labels = np.array([0, 0, 0, 1, 1, 1, 2, 2])
    groups = np.array(["a", "b", "c", "d", "e", "f", "g", "h"])
    scores = sign * np.eye(3)[labels]
    drawn = macro_aucs(labels, scores, draw_patients(labels, groups, n_resamples=50).weights)
    found = drawn_interval(macro_auc(labels, scores), drawn, 2)
    assert found.auc == auc
    assert found == interval_of(estimate_aucs(labels == 2, [[scores[:, 2]]], groups), 0)
    assert found.high - found.low == pytest.approx(1 - 0.025**0.5)  # both of two patients right
    assert np.isnan(percentile_interval(found.auc, drawn).low)


def test_one_wrong_pair_is_less_sure_than_none() -> None:
    labels, patients = make_three_classes()
    scores = np.eye(3)[labels]
    scores[0], scores[-20] = [0.0, 0.0, 0.9], [0.0, 0.0, 0.8]  # a normal one, over a virus
    drawn = macro_aucs(labels, scores, draw_patients(labels, patients, n_resamples=400).weights)
    found = drawn_interval(macro_auc(labels, scores), drawn, 126)
    assert found.low < found.auc < found.high < 1
    assert found.low <= drawn_interval(1.0, np.ones(400), 126).low


def test_what_does_not_vary_or_is_of_one_patient_has_no_interval(rng: np.random.Generator) -> None:
    labels = np.array([0, 0, 0, 1, 1, 1, 2, 2, 2])
    scores = np.stack([labels == 0, np.ones(9), np.ones(9)], axis=1).astype(float)
    drawn = macro_aucs(labels, scores, draw_patients(labels, n_resamples=50).weights)
    found = drawn_interval(macro_auc(labels, scores), drawn, 3)
    assert found.auc == pytest.approx(2 / 3)  # of 1, 0.5 and 0.5
    assert np.isnan([found.low, found.high]).all()
    drawn = macro_aucs(
        labels, rng.random((9, 3)), draw_patients(labels, labels, n_resamples=50).weights
    )
    assert np.isnan(drawn_interval(0.6, drawn, 1).low)


def test_drawings_without_a_class_are_refused(rng: np.random.Generator) -> None:
    labels, scores = np.arange(20) % 2, rng.random((20, 3))
    with pytest.raises(ValueError, match="expected both classes in y_true in every resample"):
        macro_aucs(labels, scores, np.ones((2, 20)))
