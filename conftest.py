"""What all tests of the project can ask for: `kafka`, `postgres`, `postgres_url` (servers/fixtures.py)."""

pytest_plugins = ["servers.fixtures"]
