"""What does a shard of ready-made activations hold, and how is it opened?

Only headers are read here. What becomes of the rows is the business of `stored_activations.py`.
"""

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from dmsae.text_files import LocalFile, unreadable

TENSORS = ("activations", "token_ids", "document_ids")

FLOATS = ("F32", "F16", "BF16")
INTEGERS = ("I64", "I32", "I16", "U8")
"""Types of activations and of ids, as safetensors names them."""


class Shard(NamedTuple):
    """One file, and what its header says."""

    file: LocalFile
    n_rows: int
    n_tokens: int
    d_model: int
    dtype: str
    """As safetensors names it."""


def read_header(file: LocalFile) -> Shard:
    """Read what a shard holds without reading it.

    Raises: CycleFailed with `data_unreadable`.
    """
    with reading(file) as tensors:
        present = sorted(tensors.keys())
        for name in TENSORS:
            if name not in present:
                rule = f"{file.name} has no such tensor, only {', '.join(present[:20])}"
                raise unreadable("data.text", name, rule)
        slices = {name: tensors.get_slice(name) for name in TENSORS}
        shapes = {name: tuple(each.get_shape()) for name, each in slices.items()}
        dtypes = {name: each.get_dtype() for name, each in slices.items()}
    told = "; ".join(f"{name} {dtypes[name]} {shapes[name]}" for name in TENSORS)
    shape = shapes["activations"]
    has_shapes = len(shape) == 3 and shapes["token_ids"] == shape[:2]
    if not has_shapes or shapes["document_ids"] not in (shape[:1], shape[:2]):
        rule = (
            "must hold activations (rows, tokens, d_model), token_ids (rows, tokens), document_ids (rows) or"
        )
        raise unreadable("data.text.paths", file.name, f"{rule} (rows, tokens), not {told}")
    is_integer = all(dtypes[name] in INTEGERS for name in TENSORS[1:])
    if dtypes["activations"] not in FLOATS or not is_integer:
        rule = f"activations must be {', '.join(FLOATS)} and ids {', '.join(INTEGERS)}, not {told}"
        raise unreadable("data.text.paths", file.name, rule)
    n_rows, n_tokens, d_model = shape
    return Shard(file, n_rows, n_tokens, d_model, dtypes["activations"])


@contextmanager
def reading(file: LocalFile) -> Iterator[Any]:
    """Open a shard; nothing of it is read before it is asked for."""
    try:
        with safe_open(file.path, framework="pt") as tensors:
            yield tensors
    except (OSError, SafetensorError) as error:
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            raise
        raise unreadable("data.text.paths", file.name, f"cannot be read ({error})") from error
