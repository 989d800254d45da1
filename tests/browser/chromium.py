"""Which browser of this machine do the tests drive? None is ever downloaded."""

import os
import shutil

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
"""Commands under which Debian, Ubuntu and Google install it."""
MISSING = (
    "no Chromium was found on PATH: install it (Debian: `apt-get install chromium`), "
    "or name one in DMSAE_CHROMIUM"
)


def find_chromium() -> str | None:
    """Give the path of the machine's Chromium, None where there is none."""
    return os.environ.get("DMSAE_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)


def may_be_skipped() -> bool:
    """Tell whether tests may go without a browser: not where CI runs them."""
    return os.environ.get("CI", "").lower() != "true"
