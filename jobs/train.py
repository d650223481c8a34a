"""Train heads on extracted features and write their results."""

from cxr_spark.cli import read_experiment_flags, run_job, share_heap, told_command

FLAGS = (
    "config", "features", "run", "mlflow", "backbones", "heads", "seeds", "extraction",
    "distribute-heads", "overwrite",
)  # fmt: skip


def main() -> None:
    """Parse and call."""
    share_heap()
    experiment = read_experiment_flags("train.py", str(__doc__), FLAGS)
    from cxr_spark.stages import run_train

    run_train(experiment, command=told_command())


if __name__ == "__main__":
    run_job(main)
