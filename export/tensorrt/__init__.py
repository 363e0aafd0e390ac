"""TensorRT and TensorRT-RTX plans: their graphs and targets, building them, checking and loading them, and running them."""
