"""The tables of search spaces: which values each parameter of a head may take while it is tuned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from cxr_spark.training.classifiers import CLASSIFIERS, Classifier
from cxr_spark.training.heads import HEADS, Head

PREFIX = "tuned_"

# What a trial has in place of what the head is trained with at last: 500 trees on 5,000 images take
# 75 s of a core, and a search is 250 fits.
CHEAPER: dict[str, Mapping[str, Any]] = {"random_forest": {"n_estimators": 100}}


@dataclass(frozen=True)
class Between:
    """Numbers from ``low`` to ``high``: even, even on a logarithmic scale, or whole."""

    low: float
    high: float
    scale: Literal["even", "log", "whole"] = "even"

    def distribution(self) -> Any:
        """Return it as scikit-learn's ParameterSampler takes it, a distribution of SciPy."""
        from scipy import stats  # which takes 0.6 s to import, and a wrong flag is told at once

        if self.scale == "log":
            return stats.loguniform(self.low, self.high)
        if self.scale == "whole":
            return stats.randint(int(self.low), int(self.high) + 1)
        return stats.uniform(self.low, self.high - self.low)


Space = Mapping[str, Between | Sequence[Any]]

# A list is drawn from evenly. Names are those of the fields of ``heads.Head`` for a network, of the
# parameters of scikit-learn's estimator for a classifier.
_NETWORK: Space = {
    "learning_rate": Between(1e-4, 1e-2, "log"),
    "weight_decay": Between(1e-4, 1.0, "log"),
    "epochs": [5, 10, 20, 40],
    "class_weights": [None, "balanced"],
}
_DENSE: Space = {**_NETWORK, "learning_rate": Between(3e-5, 3e-3, "log"), "epochs": [5, 10, 20]}
SPACES: dict[str, Space] = {
    "gap": _NETWORK,
    "fc1024": {**_DENSE, "dense": [(256,), (1024,)], "dropout": Between(0.0, 0.7)},
    "dnn3": {
        **_DENSE,
        "dense": [(1024, 512, 256), (512, 256, 128), (256, 128, 64)],
        "dropout": Between(0.0, 0.7),
    },
    "logistic": {"C": Between(1e-5, 1.0, "log"), "class_weight": [None, "balanced"]},
    "linear_svm": {"C": Between(1e-6, 0.1, "log"), "class_weight": [None, "balanced"]},
    "rbf_svm": {
        "C": Between(0.1, 100.0, "log"),
        "gamma": Between(1e-5, 1e-2, "log"),
        "class_weight": [None, "balanced"],
    },
    "random_forest": {
        "max_features": Between(0.005, 0.1, "log"),
        "min_samples_leaf": Between(1, 10, "whole"),
        "criterion": ["gini", "entropy"],
        "class_weight": [None, "balanced"],
    },
    "gradient_boosting": {
        "learning_rate": Between(0.02, 0.3, "log"),
        "max_leaf_nodes": [4, 8, 15, 31],
        "max_features": Between(0.02, 0.5, "log"),
        "min_samples_leaf": Between(5, 50, "whole"),
        "l2_regularization": Between(1e-3, 100.0, "log"),
    },
    "nearest_neighbours": {
        "n_neighbors": Between(3, 100, "whole"),
        "weights": ["uniform", "distance"],
        "p": [1, 2],
    },
}


@dataclass(frozen=True)
class Tuned:
    """A head whose parameters are searched for on training images.

    Attributes:
        of: the head that is tuned.
        space: the values that each parameter may take.
        source: who asked for it.
    """

    of: Head | Classifier
    space: Space
    source: str = "the seed study's future work: tuned heads"

    @property
    def name(self) -> str:
        """Its name in configurations."""
        return PREFIX + self.of.name

    @property
    def takes(self) -> str:
        """What it is trained on: as the head that is tuned."""
        return self.of.takes

    def draw(self, n_trials: int, seed: int) -> Sequence[dict[str, Any]]:
        """Return parameters of trials, drawn from the space; the first are those of the table.

        A search that begins with what is known to work never returns worse than it.
        """
        from sklearn.model_selection import ParameterSampler

        space = {
            name: values.distribution() if isinstance(values, Between) else list(values)
            for name, values in self.space.items()
        }
        drawn = ParameterSampler(space, n_trials - 1, random_state=seed)
        return [{}, *({key: _plain(value) for key, value in one.items()} for one in drawn)]

    def trial(self, parameters: Mapping[str, Any]) -> Head | Classifier:
        """Return the head that tries parameters, which may be a cheaper one."""
        return self.with_parameters({**parameters, **CHEAPER.get(self.of.name, {})})

    def with_parameters(self, parameters: Mapping[str, Any]) -> Head | Classifier:
        """Return the head with other parameters, under the name of the tuned one."""
        if isinstance(self.of, Classifier):
            return replace(self.of, name=self.name, parameters=dict(parameters))
        stated = dict(parameters)
        if "dense" in stated:  # a list once it was stored
            stated["dense"] = tuple(stated["dense"])
        return replace(self.of, name=self.name, **stated)


def _plain(value: Any) -> Any:
    """Return a value as JSON stores it: what SciPy draws are NumPy's numbers."""
    value = value.item() if hasattr(value, "item") else value
    return list(value) if isinstance(value, tuple) else value


TUNED = {
    tuned.name: tuned
    for tuned in (
        Tuned({**HEADS, **CLASSIFIERS}[name], space)  # type: ignore[arg-type]
        for name, space in SPACES.items()
    )
}
