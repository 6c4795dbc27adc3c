"""Real servers for tests, benchmarks and demos: Kafka, PostgreSQL and Jaeger, wherever this machine gets them from.

`finding` says in which order; `kafka`, `postgres` and `jaeger` start what is installed here, and can be hard on it;
`docker` starts containers; `session` shares what was found among a test session's processes; `fixtures` hands it to
tests.
"""
