"""Training a supernet: recipes, sampling strategies, the loop and its checkpoints."""
