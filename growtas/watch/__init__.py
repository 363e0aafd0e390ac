"""Watching a training: its metrics read back, drawn in the terminal, as a picture, and for TensorBoard."""
