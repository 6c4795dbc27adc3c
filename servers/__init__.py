"""Real servers for tests, benchmarks and demos: Kafka and PostgreSQL, wherever this machine can get them from.

`finding` says in which order; `kafka` and `postgres` start what is installed here, and can be hard on it; `docker`
starts containers; `session` shares what was found among a test session's processes; `fixtures` hands it to tests.
"""
