"""The order saga's tests: each road, each crash, and the money."""
