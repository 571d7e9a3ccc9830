"""One file for each subcommand of `vlm`: parse, build, call."""
