"""Exports a subnet of a run to verified files with manifests: options, formats, model card and Triton repository."""
