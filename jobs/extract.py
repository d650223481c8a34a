"""Extract the features of a folder of images by pretrained backbones, on Spark."""

from cxr_spark.cli import read_experiment_flags, run_job

FLAGS = (
    "config",
    "images",
    "features",
    "weights",
    "backbones",
    "precision",
    "feature-maps",
    "limit",
    "overwrite",
    "refresh",
    "max-error-fraction",
)


def main() -> None:
    """Parse and call."""
    experiment = read_experiment_flags("extract.py", str(__doc__), FLAGS)
    from cxr_spark.stages import run_extract

    run_extract(experiment)


if __name__ == "__main__":
    run_job(main)
