"""Write results.csv and report.html of a run folder again, from its predictions."""

from cxr_spark.cli import parse_flags, run_job


def main() -> None:
    """Parse and call."""
    flags = parse_flags("report.py", str(__doc__), ("run", "mlflow"))
    from pathlib import Path

    from cxr_spark.stages import run_report

    run_report(Path(flags["run"]), flags["mlflow"])


if __name__ == "__main__":
    run_job(main)
