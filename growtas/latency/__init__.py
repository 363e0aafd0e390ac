"""Latency: device profiles, the modelled (roofline) and the measured (this machine's CPU) estimate of a subnet's latency."""

from growtas.latency.estimate import Conditions, Latency, LatencyEstimator
from growtas.latency.modelled.profile import DeviceProfile, device_names, load_profile, profile_names

__all__ = ["Conditions", "DeviceProfile", "Latency", "LatencyEstimator", "device_names", "load_profile", "profile_names"]
