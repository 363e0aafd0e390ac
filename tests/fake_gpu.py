"""A GPU for tests of placement on machines without one, by torch's FakeTensorMode."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from growtas.nn.relative import compute_grid_index


@contextlib.contextmanager
def fake_gpu() -> Iterator[None]:
    """Tensors on ``cuda`` have a shape, a type and a device here, but no numbers.

    An operation on tensors of different devices raises an error that names them. Numbers that are read are zeros. There
    is no backward pass: autograd has no thread for the GPU.
    """
    # What is cached for a device belongs to one fake mode.
    compute_grid_index.cache_clear()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
        patch.setattr(torch.cuda, "is_bf16_supported", lambda: True)
        patch.setattr(FakeTensor, "numpy", _zeros, raising=False)
        patch.setattr(FakeTensor, "__int__", lambda tensor: 0, raising=False)
        # Networks are made outside, as real ones, and placed inside.
        with FakeTensorMode(allow_non_fake_inputs=True):
            yield
    compute_grid_index.cache_clear()


def _zeros(tensor: Tensor) -> NDArray[Any]:
    if tensor.device.type != "cpu":
        raise TypeError(f"a tensor on {tensor.device} has no array; it must be copied to the CPU first")
    return np.zeros(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
