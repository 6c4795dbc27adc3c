# noqa: A005 - it is tests.typing
