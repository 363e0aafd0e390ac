"""Slow runs behind docs/EVIDENCE.md: ``make evidence``."""
