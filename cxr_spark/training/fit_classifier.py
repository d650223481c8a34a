"""Classifiers fitted on training images, and their scores."""

from __future__ import annotations

import time
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import softmax

from cxr_spark.training.classifiers import Classifier
from cxr_spark.training.trainer import TrainedHead

IMAGES_AT_ONCE = 4096


def fit_classifier(
    classifier: Classifier,
    features: npt.NDArray[np.float32],
    labels: npt.NDArray[np.int64],
    train: npt.NDArray[np.int64],
    *,
    seed: int,
    scored: npt.NDArray[np.int64] | None = None,
) -> TrainedHead:
    """Fit a classifier on the training images alone, and score all, or some.

    Args:
        classifier: a row of the table.
        features: float32 of shape (n_images, channels), of all images.
        labels: int64 of shape (n_images,), class indices.
        train: int64, positions of the images that it is fitted on, every class among them.
        seed: of the classifier.
        scored: int64, positions of the images that are scored, in the order of their scores.
    """
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    began = time.perf_counter()
    pipeline = make_pipeline(StandardScaler(), classifier.estimator(seed))
    # In float64: features of untrained backbones are too small for a variance in float32.
    pipeline.fit(features[train].astype(np.float64), labels[train])
    seconds = time.perf_counter() - began
    asked = features if scored is None else features[scored]
    parts = range(0, len(asked), IMAGES_AT_ONCE)
    scores = [score_classifier(pipeline, asked[i : i + IMAGES_AT_ONCE]) for i in parts]
    return TrainedHead(pipeline, {}, np.concatenate(scores), seconds)


def score_classifier(pipeline: Any, features: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Return scores of shape (n_images, n_classes), rows adding to 1.

    They are the classifier's probabilities; of one that has none the softmax of its decision
    values, which orders images as they do and is no probability before it is calibrated.

    Args:
        pipeline: a fitted pipeline of ``fit_classifier``.
        features: float32 of shape (n_images, channels).
    """
    features = features.astype(np.float64)
    if hasattr(pipeline, "predict_proba"):
        scores = pipeline.predict_proba(features)
    else:
        decision = pipeline.decision_function(features)
        if decision.ndim == 1:
            decision = np.stack([-decision / 2, decision / 2], axis=1)
        scores = softmax(decision, axis=1)
    found: npt.NDArray[np.float32] = scores.astype(np.float32)
    return found
