"""The command: `microflow`, and the lines it prints."""
