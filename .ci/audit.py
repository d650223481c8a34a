"""Known vulnerabilities of the packages that are installed: fails where any was not looked up.

pip-audit passes over what it cannot find at its service, and still says that it found nothing.

    python .ci/audit.py SITE_PACKAGES
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

OURS = "cxr-spark"  # on no index

# Advisories of versions that petastorm forces, and why they do not reach us.
ACCEPTED = {
    "CVE-2024-6345": "in setuptools' package_index, which downloads: nothing here calls it",
    "CVE-2025-47273": "in setuptools' package_index, which downloads: nothing here calls it",
    "CVE-2025-53644": "in OpenCV's JPEG decoder: Pillow decodes every image here",
    "CVE-2025-69872": "in diskcache, of petastorm's local-disk cache, which is never asked for",
    "CVE-2025-50817": "in future, disputed: a module test on the path, which none here has",
}


def judge(dependencies: Sequence[dict[str, Any]]) -> list[str]:
    """Return what is wrong, a line for each; nothing where every package was found clean.

    Args:
        dependencies: of pip-audit's JSON: ``name``, and ``version`` and ``vulns`` or
            ``skip_reason``.
    """
    ours = [d for d in dependencies if d["name"].lower().replace("_", "-") == OURS]
    audited = [d for d in dependencies if d not in ours]
    if not audited:
        return ["Expected packages to audit. Received: none"]
    problems = []
    skipped = [d for d in audited if "skip_reason" in d]
    if skipped:
        problems.append(
            f"Expected every package to be looked up. Received: {len(skipped)} of {len(audited)} "
            f"that were not, {', '.join(d['name'] for d in skipped)} "
            f"(pip-audit says of the first: {skipped[0]['skip_reason']})"
        )
    for dependency in audited:
        for advisory in dependency.get("vulns", ()):
            if not {advisory["id"], *advisory.get("aliases", ())} & ACCEPTED.keys():
                fixed = ", ".join(advisory["fix_versions"]) or "no version yet"
                problems.append(
                    f"{dependency['name']} {dependency['version']}: {advisory['id']}, "
                    f"fixed in {fixed}"
                )
    return [" ".join(problem.split()) for problem in problems]


def audit(site_packages: str) -> list[str]:
    """Return what is wrong with the packages of a folder, as ``judge`` does."""
    options = ["--path", site_packages, "--format=json", "--progress-spinner=off"]
    command = [sys.executable, "-m", "pip_audit", *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    try:
        return judge(json.loads(done.stdout)["dependencies"])
    except (ValueError, KeyError, TypeError):  # it reached no service, and says so last
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        return [f"Expected pip-audit to reach its service. Received: {said[-1]}"]


def main() -> int:
    """Audit, and print a line for each thing that is wrong."""
    problems = audit(sys.argv[1])
    for problem in problems:
        print(f"audit: {problem}", file=sys.stderr)
    if not problems:
        print(f"audit: nothing is known, apart from {', '.join(ACCEPTED)}")
    return min(1, len(problems))


if __name__ == "__main__":
    sys.exit(main())
