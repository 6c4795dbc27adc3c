"""Suites that show whether an adapter keeps the promises of `microflow.ports`. They need no test framework."""
