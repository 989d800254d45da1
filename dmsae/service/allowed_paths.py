"""Which paths of a worker's disk may a request name? Those under an allowed root, links followed."""

import os
from collections.abc import Sequence
from pathlib import Path

from dmsae.errors import FieldProblem, InvalidConfig
from dmsae.sources import FileText, StoredActivations, TextSource

WILDCARDS = "*?["


def check_text_paths(text: TextSource, allowed_roots: Sequence[Path]) -> None:
    """Refuse text files whose path, up to the first wildcard, lies outside the allowed roots.

    Raises:
        InvalidConfig: naming the path.
    """
    if isinstance(text, FileText | StoredActivations):
        for index, path in enumerate(text.paths):
            allowed_path(path, allowed_roots, param=f"data.text.paths.{index}")


def allowed_path(path: str, allowed_roots: Sequence[Path], *, param: str) -> Path:
    """Resolve a path, symbolic links followed, and give it if it lies under an allowed root.

    Raises:
        InvalidConfig: it does not, or is no absolute path without `..`.
    """
    problem = None
    if "\0" in path or not os.path.isabs(path) or ".." in Path(path).parts:
        problem = "must be an absolute path without '..'"
    elif not is_under(os.path.realpath(_fixed_part(path)), allowed_roots):
        named = ", ".join(map(str, allowed_roots)) or "none; set DMSAE_ALLOWED_ROOTS"
        problem = f"must lie under an allowed root, links followed (allowed: {named})"
    if problem is not None:
        raise InvalidConfig([FieldProblem(param, path[:200], problem, "path_not_allowed")])
    return Path(os.path.realpath(path))


def is_under(path: str, allowed_roots: Sequence[Path]) -> bool:
    """Tell whether a resolved path lies under one of the roots, themselves resolved."""
    return any(Path(path).is_relative_to(os.path.realpath(root)) for root in allowed_roots)


def _fixed_part(path: str) -> str:
    """Give the folders of a glob before its first wildcard; a plain path is given whole."""
    parts = Path(path).parts
    n_fixed = next((i for i, part in enumerate(parts) if set(part) & set(WILDCARDS)), len(parts))
    return os.path.join(*parts[:n_fixed])
