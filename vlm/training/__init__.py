"""One training loop, its optimizer and its start. Knows the assembled model only through its loss."""
