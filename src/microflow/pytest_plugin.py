"""The pytest plugin: the `world` fixture, a whole system in virtual time."""
