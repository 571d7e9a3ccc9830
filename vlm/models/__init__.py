"""Assembled models, their losses, generation and weights on disk."""
