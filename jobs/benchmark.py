"""Measure this machine: each stage, extraction, heads, and programs to compare with."""

from cxr_spark.cli import parse_flags, run_job

FLAGS = (
    "images", "weights", "backbones", "limit", "repeat", "peers", "out", "feature-maps",
    "engine-only", "sections", "precision",
)  # fmt: skip


def main() -> None:
    """Parse and call."""
    flags = parse_flags("benchmark.py", str(__doc__), FLAGS)
    from pathlib import Path

    from cxr_spark.benchmark.job import run_benchmark

    run_benchmark(flags, Path(__file__).resolve().parent)


if __name__ == "__main__":
    run_job(main, "--out holds what was measured before")
