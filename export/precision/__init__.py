"""Precision of ONNX files: conversion, inspection, and the layers that have to stay high."""

from __future__ import annotations

from growtas.export.precision.convert import DEFAULT_METHOD, RESTS, PrecisionInfo, convert
from growtas.export.precision.inspect import PRECISIONS, QUANTISED, check_precision, inspect_precision

__all__ = [
    "DEFAULT_METHOD",
    "PRECISIONS",
    "QUANTISED",
    "RESTS",
    "PrecisionInfo",
    "check_precision",
    "convert",
    "inspect_precision",
]
