"""From files on disk to batches; knows no model. Import the modules below by name: this file loads nothing."""
