"""Towers: vision backbones, language models, text encoders. Parts know no data and no training."""
