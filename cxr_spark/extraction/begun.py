"""What there is of each extraction: the data set that stands, and the shards computed since."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cxr_spark.extraction.account import read_columns
from cxr_spark.extraction.load import LoadedBackbone
from cxr_spark.extraction.shards import Failure, Shard, parts_of, read_shards
from cxr_spark.extraction.store import (
    ERROR_COLUMNS,
    LISTING_COLUMNS,
    RECORD_NAME,
    ExtractionRecord,
    check_files,
    read_errors,
    read_record,
)
from cxr_spark.paths import AnyPath

if TYPE_CHECKING:
    from pyspark.sql import DataFrame, SparkSession


@dataclass(frozen=True)
class Outputs:
    """Where features go.

    Attributes:
        features: the features folder.
        staging: a folder in it, for what is not committed.
        feature_maps: whether maps are asked for.
        check: raises where the folder is not this run's any more, before something is committed.
    """

    features: AnyPath
    staging: AnyPath
    feature_maps: bool
    check: Callable[[], None] = lambda: None

    def manifest(self, spark: SparkSession) -> DataFrame:
        """Return every image found."""
        return read_columns(spark, self.features / "manifest", LISTING_COLUMNS)


@dataclass(frozen=True)
class Begun:
    """What there is of one backbone's extraction.

    Attributes:
        backbone: that computes it.
        parts: the folder of its shards.
        finished: the record of the data set that its shards join; None where there is none, or one
            that lacks maps.
        shards: computed since.
        failures: images that could not be used, of the data set and of its shards, in their order.
    """

    backbone: LoadedBackbone
    parts: AnyPath
    finished: ExtractionRecord | None
    shards: tuple[Shard, ...]
    failures: tuple[Failure, ...]

    @property
    def kept(self) -> list[str]:
        """The names of the files of the data set that stay."""
        replaced = {name for shard in self.shards for name in shard.replaces}
        names = self.finished.files if self.finished else {}
        return [name for name in names if name not in replaced]

    def files(self, features: AnyPath) -> list[AnyPath]:
        """Return the Parquet files of all features there are."""
        place = features / self.backbone.identity.fingerprint
        return [place / name for name in self.kept] + [f for s in self.shards for f in s.files]


def begun(outputs: Outputs, backbone: LoadedBackbone) -> Begun:
    """Read what there is of a backbone's extraction.

    Raises:
        UserError: the data set is damaged.
    """
    fingerprint = backbone.identity.fingerprint
    place, finished, failures = outputs.features / fingerprint, None, list[Failure]()
    if (place / RECORD_NAME).exists():
        finished = read_record(place)
        if finished.feature_map_shape is None and outputs.feature_maps:
            finished = None
        else:
            check_files(outputs.features, finished)
            failures += (
                tuple(error[name] for name in ERROR_COLUMNS)
                for error in read_errors(outputs.features, finished)
                if error["stage"] != "path"
            )
    has_maps = outputs.feature_maps or bool(finished and finished.feature_map_shape)
    parts = parts_of(outputs.features, fingerprint, feature_maps=has_maps)
    shards = read_shards(parts)
    failures += [failure for shard in shards for failure in shard.failures]
    return Begun(backbone, parts, finished, tuple(shards), tuple(failures))
