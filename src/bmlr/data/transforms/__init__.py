"""Transforms of waveforms, images and frames."""
