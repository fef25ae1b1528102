"""Readers of single files: audio, video, images, arrays, pickles, idx files."""
