"""How does `docs/` become a site that asks nothing of any other host?

MkDocs does, with the theme and the hooks beside this file. What it warns of (a link that leads nowhere, a
page that no menu names) is given back; the site is there all the same, so that a draft can be looked at.
"""

import logging
from pathlib import Path

from mkdocs.commands.build import build
from mkdocs.config import load_config

ROOT = Path(__file__).parents[1]
SITE = ROOT / "build" / "docs"
"""Where the API looks for it (`api/handbook_site.py`)."""


class _Warnings(logging.Handler):
    """Keeps what MkDocs warns of."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.found: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.found.append(record.getMessage())


def build_site(folder: Path) -> list[str]:
    """Write the site into a folder and give MkDocs's warnings; what was in the folder goes."""
    warnings = _Warnings()
    logger = logging.getLogger("mkdocs")
    logger.addHandler(warnings)
    try:
        config = load_config(str(Path(__file__).with_name("mkdocs.yml")), site_dir=str(folder.absolute()))
        config.plugins.on_startup(command="build", dirty=False)
        build(config)
        config.plugins.on_shutdown()
    finally:
        logger.removeHandler(warnings)
    return warnings.found
