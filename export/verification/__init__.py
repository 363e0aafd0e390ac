"""Verification: does an artifact compute what its source computes, on which images, and within which thresholds?"""
