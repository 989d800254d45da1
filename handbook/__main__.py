"""Builds the site of `docs/`: `python -m handbook [FOLDER]`, which `make docs` runs."""

import sys
from pathlib import Path

from handbook.building import SITE, build_site


def main() -> int:
    """Build the site and give the exit status."""
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else SITE
    warnings = build_site(folder)
    sys.stderr.writelines(f"{warning}\n" for warning in warnings)
    sys.stdout.write(f"{folder}: {len(warnings)} warnings\n")
    return 1 if warnings else 0


if __name__ == "__main__":
    sys.exit(main())
