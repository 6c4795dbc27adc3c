"""Databases that services commit in."""
