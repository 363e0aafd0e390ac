"""Accuracy of many subnets: shared prefixes, cached activations, racing, and several processes."""
