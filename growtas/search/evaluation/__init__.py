"""Evaluates the accuracy of many subnets, with shared prefixes, cached activations, racing, and several processes."""
