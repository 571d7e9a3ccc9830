from tiny_data import data, one_thread, own_cache, tiny  # noqa: F401  fixtures
