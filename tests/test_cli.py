from __future__ import annotations

import shlex
import sys

import pytest

from cxr_spark.cli import told_command


def test_a_command_is_told_as_a_shell_takes_it() -> None:
    words = ["spark-submit", "--conf", "spark.task.cpus=2", "jobs/grid.py", "--images", "/a b/c"]
    assert shlex.split(told_command(words)) == words


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("spark.hadoop.fs.s3a.secret.key=planted", "spark.hadoop.fs.s3a.secret.key=*"),
        ("--conf=spark.ssl.keyPassword=planted", "--conf=*"),
        ("-Duser=x -Dpassword=planted", "-Duser=*"),
        ("hdfs://user:planted@host/images", "*"),
        ("http://planted@host:5000", "*"),
        ("postgresql://u:p/planted@host/db", "*"),
        ("spark.hadoop.fs.azure.account.key.x=planted", "spark.hadoop.fs.azure.account.key.x=*"),
        ("spark.hadoop.fs.azure.sas.fixed=planted", "spark.hadoop.fs.azure.sas.fixed=*"),
        ("spark.executorEnv.AWS_ACCESS_KEY_ID=planted", "spark.executorEnv.AWS_ACCESS_KEY_ID=*"),
        ("spark.executorEnv.WANDB_API_KEY=planted", "spark.executorEnv.WANDB_API_KEY=*"),
        ("spark.x.service.account.private.key=planted", "spark.x.service.account.private.key=*"),
    ],
)
def test_secrets_of_a_command_are_not_told(word: str, told: str) -> None:
    command = told_command(["spark-submit", "--conf", word, "jobs/grid.py"])
    assert "planted" not in command
    assert shlex.split(command)[2].startswith(told)
    assert shlex.split(command)[3] == "jobs/grid.py"


def test_by_default_it_is_that_of_this_process() -> None:
    assert shlex.split(told_command())[0] in (sys.executable, "spark-submit")
