"""The table of scikit-learn's classifiers on pooled features, each behind scaling."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal


@dataclass(frozen=True)
class Classifier:
    """One classifier of pooled features.

    Attributes:
        name: its name in configurations.
        make: returns the estimator, not fitted, for a seed; one without chance ignores it.
        takes: what it is trained on.
        parameters: of the estimator, where they are not those that ``make`` sets.
        source: who asked for it.
    """

    name: str
    make: Callable[[int], Any]
    takes: Literal["pooled"] = "pooled"
    parameters: Mapping[str, Any] = field(default_factory=dict)
    source: str = "the seed study's future work: more classifiers"

    def estimator(self, seed: int) -> Any:
        """Return the estimator, not fitted."""
        return self.make(seed).set_params(**self.parameters)


def _logistic(seed: int) -> Any:
    from sklearn.linear_model import LogisticRegression

    return LogisticRegression(C=0.01, max_iter=2000)


def _linear_svm(seed: int) -> Any:
    from sklearn.svm import LinearSVC

    return LinearSVC(C=0.001, dual="auto", max_iter=20000, random_state=seed)


def _rbf_svm(seed: int) -> Any:
    from sklearn.svm import SVC

    return SVC(C=1.0, gamma="scale", cache_size=500)


def _random_forest(seed: int) -> Any:
    from sklearn.ensemble import RandomForestClassifier

    return RandomForestClassifier(500, min_samples_leaf=2, n_jobs=-1, random_state=seed)


def _gradient_boosting(seed: int) -> Any:
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(
        max_iter=200, learning_rate=0.1, max_leaf_nodes=15, max_features=0.1, random_state=seed
    )


def _nearest_neighbours(seed: int) -> Any:
    from sklearn.neighbors import KNeighborsClassifier

    return KNeighborsClassifier(15, weights="distance", n_jobs=-1)


# Strong penalties: there are about as many channels as patients.
CLASSIFIERS = {
    classifier.name: classifier
    for classifier in (
        Classifier("logistic", _logistic),
        Classifier("linear_svm", _linear_svm),
        Classifier("rbf_svm", _rbf_svm),
        Classifier("random_forest", _random_forest),
        Classifier("gradient_boosting", _gradient_boosting),
        Classifier("nearest_neighbours", _nearest_neighbours),
    )
}
