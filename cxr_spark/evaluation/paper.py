"""The seed paper's results, to stand beside ours.

Source: G. Paterakis, N. Gounakis, Z. Asma, "Binary Image Classification using Chest X-Ray Images",
as its authors published the results with their code: Kermany's pediatric X-rays resized to 252 px,
raw pixels, 10 epochs of Adam 0.001 at batch 64, without the 16 images of val/. Their measure is
Keras' AUC metric over both softmax columns, which is not the ROC AUC of the pneumonia score.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

PAPER_TEST_KERAS_AUC = {
    ("ResNet50", "gap"): 0.8900,
    ("EfficientNetV2S", "gap"): 0.8847,
    ("MobileNetV3Small", "gap"): 0.8795,
    ("DenseNet121", "gap"): 0.8588,
    ("Xception", "gap"): 0.8484,
    ("InceptionV3", "gap"): 0.8256,
    ("EfficientNetV2S", "fc1024"): 0.8248,
    ("MobileNetV3Small", "fc1024"): 0.8087,
    ("ResNet50", "fc1024"): 0.8038,
    ("DenseNet121", "fc1024"): 0.7993,
    ("Xception", "fc1024"): 0.7919,
    ("InceptionV3", "fc1024"): 0.7175,
}


def paper_test_keras_auc(backbone: str, preprocessing: str, head: str) -> float | None:
    """Return a configuration's test AUC in the paper, or None: the paper fed raw pixels only."""
    return PAPER_TEST_KERAS_AUC.get((backbone, head)) if preprocessing == "none" else None


@dataclass(frozen=True)
class Published:
    """A test AUC that others found on the official test images.

    Attributes:
        test_auc: ROC AUC of the pneumonia score.
        model: what they trained.
        source: where it is told.
    """

    test_auc: float
    model: str
    source: str


N_OFFICIAL_TEST = 624
PUBLISHED = (
    Published(0.968, "InceptionV3, transfer learning", "Kermany et al., Cell 172 (2018)"),
    Published(
        0.973,
        "frozen DenseNet121 and a linear head, at 224 px",
        "MedMNIST+, Doerrich et al., arXiv 2404.15786 (2024)",
    ),
)


def compare_published(low: float, high: float) -> list[dict[str, Any]]:
    """Return the published figures, each with its ``place``: 'above', 'below' or 'inside'.

    Args:
        low, high: the interval of a test AUC on all of the official test images.
    """
    return [
        {
            **asdict(published),
            "place": "above" if published.test_auc > high
            else "below" if published.test_auc < low
            else "inside",
        }
        for published in PUBLISHED
    ]  # fmt: skip
