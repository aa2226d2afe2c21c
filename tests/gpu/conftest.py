"""Tests of this folder need a GPU; asked for without one they fail, for a skip would look like a pass."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _need_cuda() -> None:
    if not torch.cuda.is_available():
        pytest.fail("these tests need a CUDA device; torch sees none")
