"""Seeds the global random generators for third-party code.

timm's augmentation, Mixup and drop path use the global generators of Python, NumPy and torch. All three are seeded with (seed,
step) or (seed, epoch, position) before each use. The result then depends only on the seed and the position in the training, and a
resumed run needs no saved generator state. growtas itself uses explicit generators.
"""

from __future__ import annotations

import contextlib
import random
from collections.abc import Iterator

import numpy as np
import torch


def seed_globals(*entropy: int) -> None:
    """Seeds the global generators of Python, NumPy and torch with whole numbers."""
    state = np.random.SeedSequence(entropy).generate_state(3)
    random.seed(int(state[0]))
    np.random.seed(int(state[1]))
    torch.manual_seed(int(state[2]))


@contextlib.contextmanager
def preserved_globals() -> Iterator[None]:
    """Restores the state of the global generators when the block ends."""
    python, numpy, cpu = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        torch.set_rng_state(cpu)
