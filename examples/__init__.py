"""Examples: whole systems built with microflow, to be read, run and copied."""
