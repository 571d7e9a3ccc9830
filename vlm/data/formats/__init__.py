"""Readers of foreign file formats, one module a format; each yields `Sample`s."""
