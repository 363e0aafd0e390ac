"""One export, from a subnet of a run to checked files with manifests: options, formats, model card, Triton folder."""
