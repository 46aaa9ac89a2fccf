# Needs python3 (3.11 or newer) and a package index. ARGS is passed on to the command:
#   make demo ARGS=--once      make test ARGS=--quick      make test ARGS="--only sqlite -k plan"
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Another version of Django than the newest that this Python supports, such as 5.2
DJANGO ?=

.PHONY: help demo test lint docs messages pictures ci clean
help:
	@echo "make demo       run a contact form and a shop with a real worker (ARGS=--once: stop when done)"
	@echo "make test       run the whole suite on every database available (ARGS=--quick: about three minutes)"
	@echo "make lint       check formatting, lint and types"
	@echo "make docs       build the documentation site in build/site"
	@echo "make pictures   take the screenshots in docs/images, and all others in build/pictures; needs chromium"
	@echo "make messages   update the translation catalogues from the code, and list what is untranslated"
	@echo "make ci         run everything that CI runs"
	@echo "make clean      remove what these commands created"

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
	@echo "Setting up $(VENV) (once)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]' $(if $(DJANGO),'django==$(DJANGO).*')
	@touch $@

$(VENV)/docs-installed: $(VENV)/installed
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[docs]'
	@touch $@
