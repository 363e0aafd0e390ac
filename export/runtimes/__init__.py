"""The runtimes that run artifacts, one module each, with one protocol."""
