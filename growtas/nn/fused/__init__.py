"""The attention half and the MLP half of a block as autograd functions of their own, for fast training on a CPU."""
