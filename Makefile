# Everything runs in a virtual environment of its own, made on first use.
VENV := .venv
PY := $(VENV)/bin/python
# Some tests share what is slow to start: a group stays in one process (tests/conftest.py).
PYTEST := $(PY) -m pytest --numprocesses=auto --dist=loadgroup

.DEFAULT_GOAL := help
.PHONY: help demo test test-slow lab check format bench servers clean

help: ## show this list
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/  make \1	\2/' | expand -t 20

demo: $(VENV)/.demo ## the flash sale and the double charge, unlocked and locked, on a real Redis
	@$(PY) -m examples.demo

test: $(VENV)/.dev servers ## all tests but the slow ones
	@$(PYTEST) --durations=15
	@$(PYTEST) --durations=5 --locks zookeeper -m "also_in_zookeeper and not slow" tests/worker

test-slow: $(VENV)/.dev servers ## the slow tests, and all of the workers' tests with locks in ZooKeeper
	@$(PYTEST) --durations=15 -m slow
	@$(PYTEST) --durations=15 --locks zookeeper -m "" tests/worker

lab: $(VENV)/.dev servers ## break things for some time and judge what happened: make lab SEED=7 MINUTES=3 STORE=zookeeper
	@$(PY) -m tests.lab --store $(or $(STORE),redis) --minutes $(or $(MINUTES),1) $(if $(SEED),--seed $(SEED))

check: $(VENV)/.dev ## linter, formatter, types, wheel
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check .
	@$(PY) -m mypy
	@$(PY) tools/check_wheel.py

format: $(VENV)/.dev ## rewrite the files as the linter and the formatter want them
	@$(PY) -m ruff check --fix .
	@$(PY) -m ruff format .

bench: $(VENV)/.dev servers ## measure everything, a quarter of an hour long, and write docs/benchmarks.md
	@$(PY) -m benchmarks

servers: ## install the servers that the tests need and that are missing (Debian)
	@tools/install-servers

clean: ## remove everything that was made here
	rm -rf $(VENV) build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The stamps follow pyproject.toml: a changed dependency is installed by the next command.
$(VENV)/.demo $(VENV)/.dev: $(VENV)/.%: pyproject.toml tools/make-venv
	@tools/make-venv $(VENV) $*
	@touch $@
