"""How does each random choice get a generator of its own?

No code of the method draws from torch's global generator: every choice names itself, so that adding one
never shifts another, and any of them can be repeated alone.
"""

import hashlib

import torch


def derived_seed(seed: int, *names: str | int) -> int:
    """Give the seed that belongs to `names` under `seed`, the same in every process."""
    digest = hashlib.sha256(repr((seed, *names)).encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def named_generator(seed: int, *names: str | int) -> torch.Generator:
    """Make the CPU generator that belongs to `names` under `seed`."""
    return torch.Generator().manual_seed(derived_seed(seed, *names))
