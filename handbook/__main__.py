"""Builds the site of `docs/`: `python -m handbook [FOLDER]`, which `make docs` runs.

What is warned of is told and stops nobody: a test demands that there is nothing.
"""

import sys
from pathlib import Path

from handbook.building import SITE, build_site


def main() -> None:
    """Build the site, and say where."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else SITE
    warnings = build_site(folder)
    sys.stderr.writelines(f"{warning}\n" for warning in warnings)
    sys.stdout.write(f"The handbook is in {folder}; the API serves it at /docs/handbook.\n")


if __name__ == "__main__":
    main()
