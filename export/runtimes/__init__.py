"""Runtimes that run an artifact, one module each, behind one protocol."""
