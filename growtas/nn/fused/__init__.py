"""The attention half and the MLP half of a block as one autograd function each, for fast training on a CPU."""
