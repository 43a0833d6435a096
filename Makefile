# make demo   draw images, pack, train, score, caption, in about five minutes on two cores
# make test   lint, types, tests
# make setup  the environment alone, at .venv
# make docs   the documentation site, in site/

PYTHON ?= python3
# Where environments are kept between checkouts; empty keeps this checkout's own in .venv.
ENV_CACHE ?=
BIN := .venv/bin

.PHONY: setup demo test lint docs lock clean

setup: .venv/ready

.venv/ready: requirements.lock launch/setup.sh
	bash launch/setup.sh "$(PYTHON)" "$(ENV_CACHE)"

demo: setup
	bash launch/demo.sh

# Two tests at a time: most of a test is the start of its processes.
test: lint
	$(BIN)/python -m pytest -n 2 --dist worksteal

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Warnings, such as a link to a page that does not exist, fail the build.
docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "docs: open site/index.html; with a working search:" \
	    "$(BIN)/python -m http.server --directory site, then http://localhost:8000"

# Needs uv. Pins every version with the hashes of its files, for Python 3.11 to 3.13.
lock:
	uv pip compile pyproject.toml --extra dev --universal --generate-hashes --no-header \
	    --python-version 3.11 --quiet --output-file requirements.lock

clean:
	rm -rf .venv site .mypy_cache .ruff_cache .pytest_cache .hypothesis
