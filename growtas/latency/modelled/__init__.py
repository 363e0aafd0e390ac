"""Modelled latency: device profiles from datasheets and a roofline over a subnet's kernels."""
