"""What ``growtas bench`` compares and against what: artifacts in runtimes, timm models, the machine's own peaks, power."""
