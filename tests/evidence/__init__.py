"""The slow runs behind docs/EVIDENCE.md; see ``make help``."""
