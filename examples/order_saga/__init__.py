"""The order saga: five services that know nothing of each other, and an order that always ends exactly once."""
