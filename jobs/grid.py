"""Extract, train and report: every backbone with every head over a folder of images."""

from cxr_spark.cli import read_experiment_flags, run_job, share_heap, told_command

FLAGS = (
    "config", "images", "run", "mlflow", "features", "weights", "backbones", "heads", "seeds",
    "precision", "feature-maps", "limit", "distribute-heads", "overwrite",
    "refresh", "max-error-fraction",
)  # fmt: skip


def main() -> None:
    """Parse and call."""
    share_heap()
    experiment = read_experiment_flags("grid.py", str(__doc__), FLAGS)
    from cxr_spark.stages import run_grid

    run_grid(experiment, command=told_command())


if __name__ == "__main__":
    run_job(main)
