from __future__ import annotations

from collections.abc import Iterator
from itertools import product

import numpy as np
import numpy.typing as npt
import pytest
from scipy.stats import chi2, norm
from sklearn.metrics import roc_auc_score

from cxr_spark.evaluation.intervals import (
    auc_interval,
    difference_of,
    estimate_aucs,
    holm,
    interval_from,
    interval_of,
)
from tests.conftest import FULL

# The official test part of Kermany's X-rays: by number of images, how many patients have so many.
# A patient's are all of one class.
NORMAL = {1: 220, 2: 1, 3: 4}
PNEUMONIA = {1: 125, 2: 29, 3: 19, 4: 11, 5: 10, 6: 4, 7: 2, 9: 2}

# DeLong, DeLong and Clarke-Pearson (1988), as SAS/STAT's documentation of PROC LOGISTIC gives the
# complete cases: albumin, total protein, K-G score, and whether surgery helped.
OVARIAN = """
3.0 5.8 10 0 3.2 6.3 5 1 3.9 6.8 3 1 2.8 4.8 6 0 3.2 5.8 3 1 0.9 4.0 5 0 2.5 5.7 8 0 1.6 5.6 5 1
3.8 5.7 5 1 3.7 6.7 6 1 3.2 5.4 4 1 3.8 6.6 6 1 4.1 6.6 5 1 3.6 5.7 5 1 4.3 7.0 4 1 3.6 6.7 4 0
2.3 4.4 6 1 4.2 7.6 4 0 4.0 6.6 6 0 3.5 5.8 6 1 3.8 6.8 7 1 3.0 4.7 8 0 4.5 7.4 5 1 3.7 7.4 5 1
3.1 6.6 6 1 4.1 8.2 6 1 4.3 7.0 5 1 4.3 6.5 4 1 3.2 5.1 5 1 2.6 4.7 6 1 3.3 6.8 6 0 1.7 4.0 7 0
3.7 6.1 5 1 3.3 6.3 7 1 4.2 7.7 6 1 3.5 6.2 5 1 2.9 5.7 9 0 2.1 4.8 7 1 2.8 6.2 8 0 4.0 7.0 7 1
3.3 5.7 6 1 3.7 6.9 5 1 3.6 6.6 5 1
"""


def make_layout() -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.int64]]:
    """Return class and patient of each image of the official test part."""
    n_each = [n for layout in (NORMAL, PNEUMONIA) for n, m in layout.items() for _ in range(m)]
    patients = np.repeat(np.arange(len(n_each)), n_each)
    n_normal = sum(n * m for n, m in NORMAL.items())
    return np.arange(len(patients)) >= n_normal, patients


def make_study(rng: np.random.Generator) -> tuple:
    """Return a small study whose patients have images of both classes, and two scores with ties."""
    patients = rng.integers(0, 25, 70)
    y_true = rng.random(70) < 0.5
    of_patient = rng.normal(size=25)[patients]
    scores = [np.round(of_patient + rng.normal(size=70) + y_true, 1) for _ in range(2)]
    return y_true, patients, scores


def slow_covariance(
    y_true: npt.NDArray[np.bool_], patients: npt.NDArray[np.int64], scores: list
) -> npt.NDArray[np.float64]:
    """Obuchowski's covariances as her formulas stand, sums over patients written out."""
    x = [i for i in range(len(y_true)) if y_true[i]]
    y = [i for i in range(len(y_true)) if not y_true[i]]

    def kernel(s: npt.NDArray[np.float64], i: int, j: int) -> float:
        return 1.0 if s[i] > s[j] else 0.5 if s[i] == s[j] else 0.0

    aucs = [np.mean([kernel(s, i, j) for i in x for j in y]) for s in scores]
    m, n, everyone = len(x), len(y), sorted(set(patients.tolist()))
    n_10 = len({patients[i] for i in x})
    n_01 = len({patients[j] for j in y})
    v_10 = [{i: np.mean([kernel(s, i, j) for j in y]) for i in x} for s in scores]
    v_01 = [{j: np.mean([kernel(s, i, j) for i in x]) for j in y} for s in scores]

    def centred(of_image: dict, auc: float, patient: int) -> float:
        return sum(value - auc for image, value in of_image.items() if patients[image] == patient)

    def total(a: tuple, b: tuple) -> float:
        return sum(centred(*a, patient) * centred(*b, patient) for patient in everyone)

    covariance = np.empty((len(scores), len(scores)))
    for r, s in product(range(len(scores)), repeat=2):
        s_10 = n_10 / ((n_10 - 1) * m) * total((v_10[r], aucs[r]), (v_10[s], aucs[s]))
        s_01 = n_01 / ((n_01 - 1) * n) * total((v_01[r], aucs[r]), (v_01[s], aucs[s]))
        i = len(everyone)
        s_11 = i / (i - 1) * total((v_10[r], aucs[r]), (v_01[s], aucs[s]))
        s_11_swapped = i / (i - 1) * total((v_10[s], aucs[s]), (v_01[r], aucs[r]))
        covariance[r, s] = s_10 / m + s_01 / n + (s_11 + s_11_swapped) / (m * n)
    return covariance


@pytest.mark.parametrize("clustered", [True, False], ids=["patients", "images"])
def test_covariance_is_obuchowskis_written_out(rng: np.random.Generator, clustered: bool) -> None:
    y_true, patients, scores = make_study(rng)
    expected = slow_covariance(y_true, patients if clustered else np.arange(70), scores)
    found = estimate_aucs(y_true, [[s] for s in scores], patients if clustered else None)
    assert found.covariance == pytest.approx(expected, rel=1e-9)
    assert found.auc == pytest.approx([roc_auc_score(y_true, s) for s in scores])


def test_every_image_twice_is_no_more_certain(rng: np.random.Generator) -> None:
    y_true, _, (score, _) = make_study(rng)
    once = auc_interval(y_true, [score])
    twice = auc_interval(np.tile(y_true, 2), [np.tile(score, 2)], np.tile(np.arange(70), 2))
    assert twice.low == pytest.approx(once.low, abs=1e-4)
    assert auc_interval(np.tile(y_true, 2), [np.tile(score, 2)]).low > once.low + 0.01


def test_a_published_study_comes_out_as_published() -> None:
    """Areas, errors and tests as SAS/STAT prints them for these patients."""
    rows = np.array(OVARIAN.split(), float).reshape(-1, 4)
    y_true = rows[:, 3] == 1
    found = estimate_aucs(y_true, [[rows[:, 0]], [rows[:, 1]], [10 - rows[:, 2]]])
    assert found.auc == pytest.approx([0.7366, 0.6478, 0.7258], abs=5e-5)
    errors = np.sqrt(np.diag(found.covariance))
    assert errors == pytest.approx([0.0927, 0.1000, 0.1028], abs=5e-5)
    for k, difference, low, high, p_value in (
        (0, 0.0108, -0.1761, 0.1976, 0.9102),
        (1, -0.0780, -0.2830, 0.1271, 0.4561),
    ):
        test = difference_of(found, k, 2)
        assert [test.difference, test.low, test.high, test.p_value] == pytest.approx(
            [difference, low, high, p_value], abs=5e-5
        )
    contrasts = np.array([[1, 0, -1], [0, 1, -1]])
    apart = contrasts @ found.auc
    statistic = apart @ np.linalg.solve(contrasts @ found.covariance @ contrasts.T, apart)
    assert [statistic, chi2.sf(statistic, 2)] == pytest.approx([2.5340, 0.2817], abs=5e-5)


def test_a_published_rating_study_comes_out_as_published() -> None:
    """Hanley and McNeil (1982), table I: 109 CT images in five ratings; SE as Stata's roctab."""
    normal, abnormal = [33, 6, 6, 11, 2], [3, 2, 2, 11, 33]
    y_score = np.concatenate([np.repeat(np.arange(5), n) for n in (normal, abnormal)])
    found = estimate_aucs(np.arange(109) >= 58, [[y_score]])
    assert found.auc[0] == pytest.approx(0.8932, abs=5e-5)
    assert np.sqrt(found.covariance[0, 0]) == pytest.approx(0.0307, abs=5e-5)


def studies(auc: float, correlation: float, n_studies: int) -> Iterator[npt.NDArray[np.float64]]:
    """Yield the scores of simulated studies of the official layout, of a true AUC."""
    y_true, patients = make_layout()
    rng, shift = np.random.default_rng(0), np.sqrt(2) * norm.ppf(auc)
    for _ in range(n_studies):
        of_patient = rng.normal(size=427)[patients]
        noise = np.sqrt(correlation) * of_patient + np.sqrt(1 - correlation) * rng.normal(size=624)
        yield noise + shift * y_true


def coverage(auc: float, correlation: float) -> float:
    y_true, patients = make_layout()
    assert (len(y_true), patients[-1] + 1, y_true.sum()) == (624, 427, 390)
    intervals = [auc_interval(y_true, [s], patients) for s in studies(auc, correlation, 2000)]
    return float(np.mean([interval.low <= auc <= interval.high for interval in intervals]))


@pytest.mark.parametrize("correlation", [0.0, 0.6])
@pytest.mark.parametrize("auc", [0.80, 0.90, 0.95, 0.98])
def test_intervals_cover_in_2000_studies_of_the_official_layout(
    auc: float, correlation: float
) -> None:
    """Found: 0.9395 to 0.9525.

    Intervals that take images for independent cover 0.893 to 0.905 where the correlation is 0.6.
    """
    assert 0.93 <= coverage(auc, correlation) <= 0.97


@FULL
@pytest.mark.parametrize("correlation", [0.0, 0.6])
@pytest.mark.parametrize(
    ("auc", "low", "high"),
    [(0.60, 0.93, 0.97), (0.70, 0.93, 0.97), (0.99, 0.92, 0.95), (0.998, 0.90, 0.94),
     (0.999, 0.89, 0.93)],
)  # fmt: skip
def test_what_is_covered_beyond_what_is_promised(
    auc: float, low: float, high: float, correlation: float
) -> None:
    found = coverage(auc, correlation)
    print(f"\nAUC {auc}, correlation {correlation}: {found:.4f}")
    assert low <= found <= high


@pytest.mark.parametrize("correlation", [0.0, 0.6])
def test_paired_tests_keep_their_level(correlation: float) -> None:
    """Two scores as good as each other differ at 0.05 in 3 to 7 % of 1,000 studies."""
    y_true, patients = make_layout()
    rng = np.random.default_rng(1)
    shift = np.sqrt(2) * norm.ppf(0.95)
    refused = 0
    for _ in range(1000):
        of_patient = rng.normal(size=427)[patients]
        shared = np.sqrt(correlation) * of_patient + np.sqrt(1 - correlation) * rng.normal(size=624)
        scores = [[shared + 0.7 * rng.normal(size=624) + shift * y_true] for _ in range(2)]
        refused += difference_of(estimate_aucs(y_true, scores, patients), 0, 1).p_value < 0.05
    assert 0.03 <= refused / 1000 <= 0.07


def test_several_seeds_are_joined_by_their_placements(rng: np.random.Generator) -> None:
    y_true, patients, (one, other) = make_study(rng)
    joint = auc_interval(y_true, [one, other], patients)
    assert joint.auc == pytest.approx(
        (roc_auc_score(y_true, one) + roc_auc_score(y_true, other)) / 2
    )
    assert auc_interval(y_true, [one, one], patients) == auc_interval(y_true, [one], patients)


@pytest.mark.parametrize(("scores", "auc"), [([3, 4, 1, 2], 1.0), ([1, 2, 3, 4], 0.0)])
def test_perfect_and_reversed_scores_have_an_honest_interval(scores: list[int], auc: float) -> None:
    interval = auc_interval([1, 1, 0, 0], [scores])
    assert interval.auc == auc
    assert interval.high - interval.low == pytest.approx(1 - 0.025**0.5)
    of_one_patient = auc_interval([1, 1, 0, 0], [scores], ["a", "a", "b", "c"])
    assert of_one_patient.high - of_one_patient.low == pytest.approx(1 - 0.025)


def test_constant_scores_are_chance() -> None:
    interval = auc_interval([1, 1, 0, 0], [np.ones(4)])
    assert interval.auc == 0.5
    assert np.isnan([interval.low, interval.high]).all()  # no image tells how sure that is


def test_one_patient_of_a_class_tells_no_variance(rng: np.random.Generator) -> None:
    interval = auc_interval([1, 1, 0, 0, 0], [[3, 1, 2, 0, 4]], ["a", "a", "b", "c", "d"])
    assert np.isnan([interval.low, interval.high]).all()


def test_an_unknown_variance_is_no_certainty() -> None:
    scores = [[[3, 1, 2, 0, 4]], [[1, 2, 3, 4, 0]]]
    test = difference_of(estimate_aucs([1, 1, 0, 0, 0], scores, ["a", "a", "b", "c", "d"]), 0, 1)
    assert test.difference != 0
    assert np.isnan([test.low, test.high, test.p_value]).all()


def test_equals_have_a_p_value_of_1_where_a_single_patient_tells_no_variance() -> None:
    scores = [[[3, 1, 2, 0, 4]], [[6, 2, 4, 0, 8]]]
    test = difference_of(estimate_aucs([1, 1, 0, 0, 0], scores, ["a", "a", "b", "c", "d"]), 0, 1)
    assert (test.difference, test.p_value) == (0, 1)
    assert np.isnan([test.low, test.high]).all()


def test_two_perfect_classifiers_may_differ_elsewhere() -> None:
    perfect, other = [3, 4, 5, 1, 2], [8, 7, 6, 1, 0]
    found = estimate_aucs([1, 1, 1, 0, 0], [[perfect], [other]])
    test = difference_of(found, 0, 1)
    assert (test.difference, test.p_value) == (0, 1)
    assert (test.low, test.high) == pytest.approx((0.025**0.5 - 1, 1 - 0.025**0.5))


def test_a_perfect_and_a_constant_one_differ_by_who_knows_how_much() -> None:
    found = estimate_aucs([1, 1, 0, 0], [[[3, 4, 1, 2]], [np.ones(4)]])
    test = difference_of(found, 0, 1)
    assert test.difference == 0.5
    assert np.isnan([test.low, test.high, test.p_value]).all()


def test_what_rounding_leaves_is_no_variance() -> None:
    """One perfect seed and two constant ones: the mean of their placements is 2 / 3 everywhere."""
    truth = np.arange(70) % 2 == 0
    found = auc_interval(truth, [truth, np.ones(70), np.ones(70)])
    assert found.auc == pytest.approx(2 / 3)
    assert np.isnan([found.low, found.high]).all()
    assert np.isnan(interval_from(2 / 3, 1e-33, 35).low)


def test_nearly_equal_classifiers_are_tested(rng: np.random.Generator) -> None:
    """Of 20,000 images two neighbours change places: a variance of 2e-16 is no rounding."""
    score = np.sort(rng.normal(size=20000))
    truth = np.arange(20000) % 2 == 0
    other = score.copy()
    other[[10000, 10001]] = score[[10001, 10000]]
    test = difference_of(estimate_aucs(truth, [[score], [other]]), 0, 1)
    assert abs(test.difference) == pytest.approx(1e-8)
    assert 0.1 < test.p_value < 1


def test_one_class_is_refused() -> None:
    with pytest.raises(ValueError, match="expected both classes in y_true, received 2 positive"):
        auc_interval([1, 1], [[0.1, 0.2]])


def test_a_classifier_does_not_differ_from_itself(rng: np.random.Generator) -> None:
    y_true, patients, (score, other) = make_study(rng)
    found = estimate_aucs(y_true, [[score], [2 * score + 1], [other]], patients)
    same = difference_of(found, 0, 1)
    assert (same.difference, same.p_value) == (0, 1)
    there, back = difference_of(found, 0, 2), difference_of(found, 2, 0)
    assert (there.difference, there.p_value) == pytest.approx((-back.difference, back.p_value))
    assert (there.low, there.high) == pytest.approx((-back.high, -back.low))
    alone = auc_interval(y_true, [other], patients)
    third = interval_of(found, 2)
    assert (third.auc, third.low, third.high) == pytest.approx((alone.auc, alone.low, alone.high))


def test_holm_is_as_worked_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, np.nan, 0.005]) == pytest.approx(
        [0.03, 0.06, 0.06, np.nan, 0.02], nan_ok=True
    )
    assert holm([0.9, 0.8]) == pytest.approx([1, 1])
    assert len(holm([])) == 0
