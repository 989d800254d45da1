"""How does a service draw? With matplotlib loaded at the first figure, and a folder for its list of fonts."""

import os
import tempfile
from pathlib import Path
from typing import Literal

import structlog

from dmsae.figures.data import Theme
from dmsae.figures.tables import FigureData, as_csv

log = structlog.get_logger()

CONFIG_FOLDER = "MPLCONFIGDIR"
"""The variable by which matplotlib finds its folder; unset, it takes one below the home folder."""


def draw(data: FigureData, form: Literal["svg", "png", "csv"], theme: Theme, *, cache_dir: Path) -> bytes:
    """Give a figure, or its data; `cache_dir` keeps matplotlib's list of fonts from one start to the next."""
    if form == "csv":
        return as_csv(data)
    if CONFIG_FOLDER not in os.environ:
        os.environ[CONFIG_FOLDER] = str(writable_folder(cache_dir / "matplotlib"))
    from dmsae.figures import drawing

    return drawing.draw(data, form, theme)


def writable_folder(wanted: Path) -> Path:
    """Give a folder for matplotlib: the wanted one, or one of this process where that cannot be written."""
    try:
        wanted.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.TemporaryFile(dir=wanted):
            return wanted
    except OSError as error:
        log.warning("figure_cache_unwritable", folder=str(wanted), reason=error.strerror)
        return Path(tempfile.mkdtemp(prefix="dmsae-matplotlib-"))
