"""An SAE as an object: the only place of the client that needs torch, and it is imported when asked for."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dmsae.errors import DmsaeError

if TYPE_CHECKING:
    from dmsae.sae import MatryoshkaSae


class LoadedSae(NamedTuple):
    """An SAE of a finished cycle."""

    sae: "MatryoshkaSae"
    """At normalised scale: it takes activations divided by `facts["rms"]`."""
    facts: dict[str, Any]
    """rms, prefix widths, size of the core, and what it was trained on."""


def open_sae(folder: Path) -> LoadedSae:
    """Open the `sae/` folder of a cycle.

    Raises:
        DmsaeError: torch, or another package that an SAE needs, is not installed.
        CycleFailed: the folder is not whole.
    """
    try:
        from dmsae.formats import load_sae
    except ModuleNotFoundError as error:
        raise DmsaeError(
            f"An SAE needs the package {error.name!r}: pip install torch safetensors jaxtyping, or "
            "'dmsae[worker]'."
        ) from error
    return LoadedSae(*load_sae(folder))
