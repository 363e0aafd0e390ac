"""Latency of subnets: modelled from a device's datasheet, or fitted to measurements and measured."""
