"""Measured latency: the choice of subnets, the timing, and the model that is fitted to the samples."""
