"""The halves of a block as fused autograd functions for training on a CPU."""
