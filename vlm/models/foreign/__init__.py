"""Checkpoints of other trainers, written as ours."""
