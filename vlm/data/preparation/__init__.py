"""Datasets and the user's own data to their one prepared form, and its later check."""
