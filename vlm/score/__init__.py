"""Similarity of image-text pairs at scale: one row of numbers for each pair of a table."""
