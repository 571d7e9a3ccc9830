"""Samples to an ordered stream of batches: mixture, packing, length grouping, workers, and a position from which it goes on."""
