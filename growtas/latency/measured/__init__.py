"""Measured latency: which subnets are measured, how they are timed, and the model that is fitted to the samples."""
