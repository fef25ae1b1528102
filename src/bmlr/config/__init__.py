"""Configuration of a run: options, the model they describe, the file that re-runs it."""
