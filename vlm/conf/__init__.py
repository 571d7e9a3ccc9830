"""Settings: schema, presets, command line, JSON. Loads no torch."""
