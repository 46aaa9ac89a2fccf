# Needs python3 (3.11 or newer) and a package index. ARGS goes to what is run:
#   make demo ARGS=--once      make test ARGS=--quick      make test ARGS="--only sqlite -k plan"
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# A version of Django other than the newest that this Python runs, such as 5.2
DJANGO ?=

.PHONY: help demo test lint docs messages pictures ci clean
help:
	@echo "make demo   a contact form and a shop, their sequences and a real worker (ARGS=--once: ends on its own)"
	@echo "make test   the whole suite on every available database (ARGS=--quick: about three minutes)"
	@echo "make lint   formatting, lint and types"
	@echo "make docs   the documentation as a site, in build/site"
	@echo "make pictures   screenshots of the console for docs/images, and of all pages in build/pictures; needs chromium"
	@echo "make messages   updates the translation catalogues from the code, and lists what is left to translate"
	@echo "make ci     everything that CI runs"
	@echo "make clean  removes what these commands created"

demo: $(VENV)/installed
	@$(BIN)/python -m testproject.demo $(ARGS)

test: $(VENV)/installed
	@$(BIN)/python -m tests.run $(ARGS)

lint: $(VENV)/installed
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy

docs: $(VENV)/docs-installed
	@$(BIN)/python -m sphinx --builder html --fresh-env --fail-on-warning --keep-going --quiet docs build/site
	@$(BIN)/python .ci/check_site.py build/site
	@echo "The site is build/site/index.html"

pictures: $(VENV)/installed
	@$(BIN)/python -m testproject.screenshots $(ARGS)

messages: $(VENV)/installed
	@$(BIN)/python -m tests.messages

ci:
	@bash .ci/run

clean:
	rm -rf .venv* .coverage .demo .hypothesis .mypy_cache .pytest_cache .ruff_cache build dist htmlcov

$(VENV)/installed: pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed: make PYTHON=python3.12 ...")'
	@echo "Setting up $(VENV), once"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' $(if $(DJANGO),'django==$(DJANGO).*')
	@touch $@

$(VENV)/docs-installed: $(VENV)/installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@touch $@
