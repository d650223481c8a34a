"""Copy a folder of images once into Parquet of bytes, which every job takes as --images."""

from cxr_spark.cli import parse_flags, run_job

FLAGS = ("images", "out", "limit", "overwrite")
MEANINGS = {
    "out": {
        "metavar": "DIR",
        "help": "the pack, a new folder at the same path on driver and executors",
    },
    "overwrite": {"help": "replace the pack that --out holds"},
}


def main() -> None:
    """Parse and call."""
    flags = parse_flags(
        "pack.py", str(__doc__), FLAGS, required=("images", "out"), meanings=MEANINGS
    )
    from pathlib import Path

    from cxr_spark.packing import run_pack

    run_pack(
        str(flags["images"]),
        Path(flags["out"]),
        limit=flags["limit"],
        overwrite=bool(flags["overwrite"]),
    )


if __name__ == "__main__":
    run_job(main, "nothing of the new pack is left; the same command makes it from its beginning")
