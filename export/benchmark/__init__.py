"""Benchmarks: latency, throughput, memory and power of artifacts and timm baselines."""
