"""How does an SAE become a folder of another library?

`python -m dmsae.exports SAE_FOLDER OUT --to dictionary-learning`

The native folder (`formats.py`) is SAELens's already; here are the libraries that want another one.
"""

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from dmsae.errors import DmsaeError
from dmsae.formats import load_sae, require_fresh
from dmsae.sae import MatryoshkaSae

DICT_CLASS = "JumpReluAutoEncoder"
"""The class of dictionary_learning that holds one threshold for each latent, as an exempt core needs."""


class PlainJumpRelu(NamedTuple):
    """A JumpReLU autoencoder of raw activations that subtracts no decoder bias before it encodes.

    acts = pre * (pre > threshold) with pre = x W_enc + b_enc, x_hat = acts W_dec + b_dec. Shapes: float32.
    """

    W_enc: Float[Tensor, "d_model n_latents"]
    b_enc: Float[Tensor, " n_latents"]
    W_dec: Float[Tensor, "n_latents d_model"]
    b_dec: Float[Tensor, " d_model"]
    threshold: Float[Tensor, " n_latents"]


def plain_jumprelu(sae: MatryoshkaSae, *, rms: float) -> PlainJumpRelu:
    """Give the same SAE for raw activations with b_dec folded into the encoder: b_enc - b_dec W_enc.

    The product is summed in float64; what is left is the rounding of x W_enc, which is as large as x itself
    where the SAE's own encoder sees only x - b_dec.
    """
    folded = sae.b_enc.double() - sae.b_dec.double() @ sae.W_enc.double()
    return PlainJumpRelu(
        W_enc=sae.W_enc.contiguous(),
        b_enc=(rms * folded).float(),
        W_dec=sae.W_dec.contiguous(),
        b_dec=rms * sae.b_dec,
        threshold=rms * sae.threshold,
    )


def export_dictionary_learning(
    sae: MatryoshkaSae, folder: Path, *, rms: float, facts: Mapping[str, Any]
) -> None:
    """Write an SAE into a fresh folder that dictionary_learning's `load_dictionary` opens.

    `ae.pt` holds the state of its JumpReLU autoencoder and nothing but tensors: it is what that library
    reads, with `torch.load`; we write it and never read one. `facts` go into `config.json` beside rms, prefix
    widths and core size, under `dmsae`.

    Raises: DmsaeError where the folder holds anything already.
    """
    require_fresh(folder)
    d_model, n_latents = sae.W_enc.shape
    config = {
        "trainer": {"dict_class": DICT_CLASS, "activation_dim": d_model, "dict_size": n_latents},
        "dmsae": {**facts, "rms": rms, "prefix_widths": list(sae.prefix_widths), "n_core": sae.n_core},
    }
    text = json.dumps(config, indent=1, allow_nan=False) + "\n"
    torch.save(plain_jumprelu(sae, rms=rms)._asdict(), folder / "ae.pt")
    (folder / "config.json").write_text(text, encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Export one SAE and give the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m dmsae.exports", description="Write an SAE for another library."
    )
    parser.add_argument("sae", type=Path, metavar="SAE_FOLDER", help="sae/ folder of a cycle")
    parser.add_argument("out", type=Path, metavar="OUT", help="folder to write; absent or empty")
    parser.add_argument("--to", required=True, choices=["dictionary-learning"], help="library that reads it")
    arguments = parser.parse_args(argv)
    try:
        sae, facts = load_sae(arguments.sae)
        export_dictionary_learning(sae, arguments.out, rms=facts["rms"], facts=facts)
    except DmsaeError as error:
        sys.stderr.write(f"{error.message}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
