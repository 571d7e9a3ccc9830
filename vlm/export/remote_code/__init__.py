"""The code that `vlm export hf --with-code` puts beside the weights: files that need torch and transformers alone, and that nothing in vlm imports."""
