from tiny_data import data, own_cache, tiny  # noqa: F401  fixtures
