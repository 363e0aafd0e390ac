"""Seeds for third-party code that draws from the global random generators.

timm's augmentation, Mixup and drop path use Python's, NumPy's and torch's global generators. All three are set from (seed, step) or
(seed, epoch, position) just before, so that the result depends only on the seed and the position in the training, and a resumed run
needs no saved generator state. growtas itself draws from explicit generators.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


def seed_globals(*entropy: int) -> None:
    """Set the global generators of Python, NumPy and torch from whole numbers."""
    state = np.random.SeedSequence(entropy).generate_state(3)
    random.seed(int(state[0]))
    np.random.seed(int(state[1]))
    torch.manual_seed(int(state[2]))


@contextlib.contextmanager
def preserved_globals() -> Iterator[None]:
    """Put the global generators back as they were when the block ends."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
