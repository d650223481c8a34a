from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from cxr_spark.spark import REDACTED, describe_session


def session(**settings: str) -> SimpleNamespace:
    conf = SimpleNamespace(getAll=lambda: list(settings.items()))
    context = SimpleNamespace(getConf=lambda: conf, defaultParallelism=2)
    return SimpleNamespace(version="4.0.5", sparkContext=context)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("spark.sql.catalog.x.password", "planted"),
        ("spark.executor.token", "planted"),
        ("spark.sql.x.Secret", "planted"),
        ("spark.executor.fs.s3a.access.key", "planted"),
        ("spark.sql.x.accessKey", "planted"),
        ("spark.sql.x.credentials", "planted"),
        ("spark.executor.key.passphrase", "planted"),
        ("spark.sql.catalog.x.url", "jdbc:mysql://h/x?user=me&password=planted"),
        ("spark.sql.catalog.y.uri", "https://me:planted@host/x"),
        ("spark.sql.catalog.z.url", "jdbc:x://h/x?user=me&pwd=planted"),
    ],
)
def test_a_secret_is_named_and_not_told(key: str, value: str) -> None:
    told = describe_session(session(**{key: value}))  # type: ignore[arg-type]
    assert told["conf"] == {key: REDACTED}
    assert "planted" not in json.dumps(told)


def test_settings_that_made_the_features_are_told_and_others_are_not() -> None:
    settings = {
        "spark.executor.cores": "2",
        "spark.master": "spark://host:7077",
        "spark.sql.shuffle.partitions": "4",
    }
    others = {
        "spark.executorEnv.HOME": "/planted",
        "spark.executor.extraJavaOptions": "-Dx=planted",
        "spark.hadoop.fs.s3a.secret.key": "planted",
        "spark.ssl.keyPassword": "planted",
    }
    told = describe_session(session(**settings, **others))  # type: ignore[arg-type]
    assert told["conf"] == settings
    assert list(told["conf"]) == sorted(settings)
