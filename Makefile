.PHONY: demo test check nightly test-weaviate clean

PYTHON ?= python3
BIN := .venv/bin
# uv and pip read the same file; pip comes with every venv.
# Three workers for two cores, since tests also wait for servers and processes, each with whole groups of files
# (tests/conftest.py), so that what is dear to make is made once.
PYTEST := $(BIN)/pytest -n 3 --dist loadfile
INSTALL := $(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt

demo: .venv/demo
	CROSSOVER_LATENCY_REQUESTS=4 $(BIN)/crossover run --limit 80

test: .venv/dev
	$(PYTEST) -m "not nightly and not slow"

check: .venv/dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(PYTEST)

# Every attack of docs/reliability.md, whose table it writes anew.
nightly: .venv/dev
	$(BIN)/python -m benchmarks.reliability

# The contract of retrieval backends against a real server, such as WEAVIATE_URL=http://localhost:8080.
test-weaviate: .venv/dev
	@test -n "$$WEAVIATE_URL" || { echo "error: WEAVIATE_URL is not set; export it with the address of a server" >&2; exit 2; }
	$(BIN)/pytest -m weaviate tests/test_retrieval_contract.py

.venv/bin/python:
	$(PYTHON) -m venv .venv

.venv/demo: .venv/bin/python pyproject.toml constraints.txt
	@echo "installing crossover into .venv (a few minutes the first time)" >&2
	$(INSTALL) -e .
	@touch $@

.venv/dev: .venv/bin/python pyproject.toml constraints.txt
	@echo "installing crossover and its test tools into .venv (a few minutes the first time)" >&2
	$(INSTALL) -e '.[dev]'
	@touch $@ .venv/demo

clean:
	rm -rf .venv build dist
