"""Processes, devices and what goes between them; the only package that imports torch.distributed or accelerate."""
