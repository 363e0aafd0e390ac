"""TensorRT and TensorRT-RTX plans: what they are built from and for, building, checking before loading, and running."""
