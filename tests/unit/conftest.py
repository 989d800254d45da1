"""One thread of torch: its matrices are small here, and another process may test beside this one."""

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)
