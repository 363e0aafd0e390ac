"""Verification: compares an artifact's logits with those of its source on real images, with thresholds."""
