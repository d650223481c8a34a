"""The rule for memory against what workers were measured to take."""

from __future__ import annotations

import pytest

from cxr_spark.backbones import BACKBONES
from cxr_spark.dataset.remote import BYTES_AHEAD
from cxr_spark.engine import pipeline
from cxr_spark.errors import UserError
from cxr_spark.memory import (
    AHEAD_MB,
    BATCH_SIZE,
    IMAGES_AT_ONCE,
    address_space_mb,
    jvm_overhead_mb,
    to_mb,
    worker_mb,
)
from cxr_spark.spark import DEFAULTS

# (backbones, side, images a batch, images at once) -> resident MiB at its largest, address space.
MEASURED = {
    ("ResNet50", 224, 16, 256): (2507, 4323),
    ("MobileNetV3Small", 224, 16, 256): (872, 2294),
    ("EfficientNetV2S", 224, 16, 256): (2215, 3631),
    ("InceptionV3", 224, 16, 256): (2316, 3693),
    ("Xception", 224, 16, 256): (2570, 4182),
    ("DenseNet121", 224, 16, 256): (1380, 2749),
    ("all", 224, 16, 256): (4989, 7087),
    ("ResNet50", 224, 64, 256): (3027, 4460),
    ("ResNet50", 448, 16, 64): (3021, 4451),
    ("Xception", 448, 16, 64): (3617, 5309),
    ("MobileNetV3Small", 448, 16, 256): (1206, 2639),
    ("ResNet50+Xception", 224, 16, 64): (3293, 5649),
    ("DenseNet121+EfficientNetV2S+InceptionV3", 224, 16, 64): (3264, 5084),
    ("MobileNetV3Small+ResNet50", 224, 16, 256): (2321, 4159),
    ("MobileNetV3Small", 224, 64, 64): (855, 2194),
    ("EfficientNetV2S", 224, 64, 64): (2407, 4171),
    ("InceptionV3", 224, 64, 64): (2514, 4307),
    ("Xception", 224, 64, 64): (3498, 5274),
    ("DenseNet121", 224, 64, 64): (1712, 3569),
}


@pytest.mark.parametrize("case", MEASURED, ids=lambda case: "-".join(map(str, case)))
def test_the_rule_is_above_what_was_measured_and_not_far(
    case: tuple[str, int, int, int],
) -> None:
    names, side, batch_size, images_at_once = case
    resident, addressed = MEASURED[case]
    found = worker_mb(
        list(BACKBONES) if names == "all" else names.split("+"), (side, side),
        batch_size=batch_size, images_at_once=images_at_once,
    )  # fmt: skip
    assert resident <= found <= resident * 1.15
    assert addressed <= address_space_mb(found)


def test_one_backbone_is_measured_each() -> None:
    assert set(BACKBONES) <= {names for names, *_ in MEASURED}


def test_what_the_rule_counts_on_is_what_jobs_do() -> None:
    assert pipeline.BATCH_SIZE["CPU"] == BATCH_SIZE
    assert DEFAULTS["spark.sql.execution.arrow.maxRecordsPerBatch"] == str(IMAGES_AT_ONCE)
    assert 2 * BYTES_AHEAD == AHEAD_MB * 2**20
    one = worker_mb(["ResNet50"], (224, 224))
    assert worker_mb(["ResNet50"], (224, 224), remote=True) == one + AHEAD_MB


def test_memory_grows_with_backbones_pixels_and_batches_in_any_order() -> None:
    one = worker_mb(["ResNet50"], (224, 224))
    assert worker_mb(["ResNet50", "Xception"], (224, 224)) > one
    assert worker_mb(["ResNet50", "ResNet50"], (224, 224)) > one  # two kinds of preprocessing
    assert worker_mb(["ResNet50"], (224, 448)) > one
    assert worker_mb(["ResNet50"], (224, 224), batch_size=32) > one
    backward = list(reversed(BACKBONES))
    assert worker_mb(backward, (96, 96)) == worker_mb(list(BACKBONES), (96, 96))


def test_the_jvm_takes_a_tenth_of_its_heap_and_384_mb_at_least() -> None:
    assert [jvm_overhead_mb(heap) for heap in (1024, 2048, 8192)] == [384, 384, 819]


@pytest.mark.parametrize(
    ("size", "mib"),
    [("2g", 2048), ("512m", 512), ("512", 512), ("2GB", 2048), ("2048k", 2), ("1t", 2**20)],
)
def test_sizes_are_read_as_spark_writes_them(size: str, mib: int) -> None:
    assert to_mb("spark.executor.memory", size) == mib


@pytest.mark.parametrize("size", ["", "g", "1.5g", "-1g", "2x", "two"])
def test_what_is_no_size_is_told_with_its_key(size: str) -> None:
    with pytest.raises(UserError, match="Expected spark.x to be a size such as 2g"):
        to_mb("spark.x", size)
