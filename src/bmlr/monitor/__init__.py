"""Gradients recorded while a model trains."""
