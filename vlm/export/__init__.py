"""Trained models in the formats of other libraries, each checked there before the command is done."""
