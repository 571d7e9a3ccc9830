"""Vectors of frozen encoders, computed once and kept in a folder: `write_features` makes it, `FeatureCache` reads it. Knows no encoder."""

from vlm.data.feature_cache.manifest import remove_cache
from vlm.data.feature_cache.reader import FeatureCache
from vlm.data.feature_cache.writer import write_features

__all__ = ["FeatureCache", "remove_cache", "write_features"]
