"""Modelled latency: device profiles from datasheets, a roofline over a subnet's kernels, and its calibration."""
