"""Decoded samples and cached arrays on disk."""
