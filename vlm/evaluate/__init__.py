"""Measurements of trained models: losses, answers, captions, and the report that shows them."""
