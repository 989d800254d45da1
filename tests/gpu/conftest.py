"""Deterministic kernels, as every cycle asks for them."""

from collections.abc import Iterator

import pytest
import torch

from dmsae.cycle import ENVIRONMENT

WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"


@pytest.fixture(scope="module", autouse=True)
def _deterministic_as_in_a_cycle() -> Iterator[None]:
    is_deterministic = torch.are_deterministic_algorithms_enabled()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(WORKSPACE, ENVIRONMENT[WORKSPACE])
        torch.use_deterministic_algorithms(True)
        yield
        torch.use_deterministic_algorithms(is_deterministic)
