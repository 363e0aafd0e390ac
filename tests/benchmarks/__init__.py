"""Speed, as ratios of two programs run in turn: ``make bench``."""
