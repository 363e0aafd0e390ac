"""One module for each format of an export; each makes, checks and describes its artifacts."""
