"""Logs that carry events."""
