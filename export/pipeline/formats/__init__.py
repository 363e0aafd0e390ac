"""One module per export format. Each module makes, checks and describes the artifacts of its format."""
