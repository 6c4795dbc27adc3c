# What can be done with a checkout. Each target does its own set-up; a Python from 3.11 on is all that must be there.

# More for the command behind a target:  make test ARGUMENTS="tests/runtime -n 2"
ARGUMENTS =
export PYTHON

BIN = .venv/bin
SET_UP = @scripts/set_up.sh .venv requirements/development.txt
LOCK = --universal --python-version 3.11 --generate-hashes \
	--quiet --no-header --no-annotate --no-emit-index-url --no-emit-find-links
COMPILE = uv pip compile pyproject.toml $(LOCK)
COMPILE_ALONE = uv pip compile --no-deps $(LOCK)

.PHONY: help
help: ## list the targets
	@sed -n 's/^\([a-z-]*\):.*## /\1	/p' Makefile | awk -F '\t' '{ printf "make %-10s %s\n", $$1, $$2 }'

.PHONY: demo
demo: ## watch an order saga of five services handle twenty orders
	$(SET_UP)
	$(BIN)/microflow demo --orders 20 $(ARGUMENTS)

.PHONY: demo-kafka
demo-kafka: ## watch it on a real Kafka and PostgreSQL, wherever this machine can get them from
	$(SET_UP)
	$(BIN)/python -m servers run -- sh -c '$(BIN)/microflow demo --orders 20 \
		--log "$$MICROFLOW_KAFKA" --database "$$MICROFLOW_DATABASE" $(ARGUMENTS)'

.PHONY: test
test: ## run all tests, on a second, newer Python too if there is one
	$(SET_UP)
	@scripts/test.sh $(ARGUMENTS)

.PHONY: prepare
prepare: ## download and build what real servers need, into the user's cache (Jaeger takes minutes, once)
	$(SET_UP)
	$(BIN)/python -m servers prepare

.PHONY: check
check: ## check format, lint, types and layers
	$(SET_UP)
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

.PHONY: format
format: ## format the code and mend what the linter can
	$(SET_UP)
	$(BIN)/ruff format
	$(BIN)/ruff check --fix

.PHONY: torture
torture: ## break services and servers everywhere, with many seeds, for a long time
	$(SET_UP)
	$(BIN)/python -m pytest -m torture $(ARGUMENTS)

.PHONY: bench
bench: ## measure the embedded default beside DBOS
	@scripts/set_up.sh .venv-benchmark requirements/benchmark.txt
	.venv-benchmark/bin/python benchmarks/embedded.py $(ARGUMENTS)

.PHONY: bench-production
bench-production: ## measure services on real Kafka and PostgreSQL beside their neighbours
	$(SET_UP)
	@scripts/set_up.sh .venv-benchmark requirements/benchmark.txt
	$(BIN)/python -m servers run -- .venv-benchmark/bin/python benchmarks/production.py $(ARGUMENTS)

.PHONY: lock
lock: ## lock the development dependencies anew (needs uv; ARGUMENTS=--upgrade for newer versions)
	$(COMPILE) --extra dev --extra postgres --extra sqlalchemy --group test --output-file requirements/development.txt $(ARGUMENTS)
	$(COMPILE) --group benchmark --constraints requirements/development.txt \
		--output-file requirements/benchmark.txt $(ARGUMENTS)
	$(COMPILE_ALONE) --group local-postgresql --output-file requirements/local-postgresql.txt $(ARGUMENTS)
	$(COMPILE_ALONE) --group local-java --output-file requirements/local-java.txt $(ARGUMENTS)

.PHONY: clean
clean: ## remove the venvs, the caches and what was built
	rm -rf .venv .venv-* .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build
	find src tests examples benchmarks -name __pycache__ -type d -prune -exec rm -rf {} + 2>/dev/null || true
