# One command for each thing; all of them work in a fresh clone and repeat only what changed.
# Needs Python 3.11 or newer with its venv module. Another interpreter: make PYTHON=python3.13 run

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# pip says only what fails: its progress, its versions and its warnings about this editable package are noise here.
PIP := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help run test test-fast coverage lint types docs dist npm client bench soak mutants clean
# A half-made stamp would skip the rest of its recipe for ever.
.DELETE_ON_ERROR:

help: ## show this list
	@sed -n 's/^\([a-z-]*\):.*## /  make \1\t/p' $(MAKEFILE_LIST)

# When the server cannot start it says why, and "make: *** Error" behind that would be noise.
run: $(VENV)/.installed ## serve on 127.0.0.1:8000 with conf/dev.toml
	@$(BIN)/qgstream serve --config conf/dev.toml || true

# Two tests more at a time than there are cores: most of them wait for a server. At most six: each of those that run the
# tests may have a Redis, a RabbitMQ and browsers.
AT_A_TIME = $(shell $(PYTHON) -c 'import os; print(min(6, 2 + (os.cpu_count() or 1)))')
test: $(VENV)/.test ## run every test
	$(BIN)/python -m pytest --numprocesses=$(AT_A_TIME) --dist=worksteal

test-fast: $(VENV)/.test ## run the tests that start no other program
	$(BIN)/python -m pytest --numprocesses=auto --maxprocesses=4 --dist=worksteal -m "not programs"

# Of the servers that tests start, those of three folders are measured (tests/conftest.py): each costs half as much again.
coverage: $(VENV)/.test ## run every test, and fail when less than 95 % of lines and branches ran
	$(BIN)/python -m pytest --numprocesses=$(AT_A_TIME) --dist=worksteal --cov --cov-report=term

lint: $(VENV)/.lint ## check style, and which room imports which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports --no-cache --no-logo

types: $(VENV)/.lint $(VENV)/.test ## check types
	$(BIN)/mypy

docs: build/site/.built ## make the documentation site
	@echo "the site is there: build/site/index.html"

# Anew each time: what pages are made of besides their own text is not known to Sphinx. A warning is an error.
SITE_NEEDS = $(wildcard *.md docs/*.md docs/examples/*/README.md docs/site/*.* docs/images/* qgstream/web/*.md) qgstream/web/openapi.json \
	$(shell find qgstream -name '*.py')
build/site/.built: $(VENV)/.docs $(SITE_NEEDS)
	rm -rf build/site
	$(BIN)/sphinx-build --quiet --fresh-env --jobs auto --fail-on-warning --doctree-dir build/doctrees --conf-dir docs/site . build/site
	@touch $@

# setuptools takes into an sdist what the last one had (SOURCES.txt), even if MANIFEST.in has changed since.
# Without isolation: what builds is in .venv, and pip builds the sdist once more, isolated, when it installs it.
dist: $(VENV)/.dist ## build the wheel and the sdist, check them, and try each in an empty environment
	rm -f dist/*.whl dist/*.tar.gz qgstream.egg-info/SOURCES.txt
	$(BIN)/python -m build --no-isolation --outdir dist . >/dev/null
	$(BIN)/twine check --strict dist/*.whl dist/*.tar.gz
	$(BIN)/python tests/packaging/tour.py dist

# The package is made of the files that the server serves, and has the licence beside them.
BUILD := build
DIST := dist
npm: ## make the npm package of the JavaScript client, dist/qgstream-client-*.tgz; needs npm
	rm -rf $(BUILD)/npm $(DIST)/qgstream-client-*.tgz
	mkdir -p $(BUILD)/npm $(DIST)
	cp LICENSE $(addprefix qgstream/web/,README.md package.json client.js client.min.js client.d.ts) $(BUILD)/npm
	npm pack $(abspath $(BUILD))/npm --pack-destination $(DIST) --silent

client: ## make qgstream/web/client.min.js of client.js; needs npm
	npm ci --prefix tests/browser/bundlers --ignore-scripts --no-audit --no-fund --loglevel=error
	node tests/browser/bundlers/minify.mjs

bench: $(VENV)/.installed ## measure this machine
	$(BIN)/qgstream bench

soak: $(VENV)/.test ## half an hour of trouble for one server, and every fuzzed request: soak.json, soak.svg
	FUZZ_SEEDS=10000 $(BIN)/python -m pytest tests/hostile/test_fuzz.py
	$(BIN)/python tests/hostile/soak.py

mutants: $(VENV)/.test $(VENV)/.mutants ## break the code in small ways, and say which of them no test sees
	$(BIN)/python tests/mutants.py

clean: ## remove all that these commands made
	rm -rf $(VENV) .venv-* build dist *.egg-info .coverage .coverage.* htmlcov .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -not -path './$(VENV)/*' -prune -exec rm -rf {} +

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit(f"Python {sys.version.split()[0]} is too old: 3.11 or newer is needed (make PYTHON=python3.13 ...)")'
	@$(PYTHON) -c 'import ensurepip, venv' || { echo "$(PYTHON) cannot make virtual environments; on Debian: apt-get install python3-venv" >&2; exit 1; }
	@echo "Making a virtual environment in $(VENV)" >&2
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

$(VENV)/.installed: $(VENV)/.created setup.py
	@echo "Installing qgstream and its libraries in $(VENV). This takes one to two minutes, and happens once." >&2
	@$(PIP) --editable .
	@touch $@

# Debian 12 has a pip that does not know dependency groups.
$(VENV)/.pip: $(VENV)/.created
	$(PIP) --upgrade 'pip>=25.1'
	@touch $@

# Not after .installed: pip would build the package once more, which takes as long as a third of the tests' packages.
$(VENV)/.test: $(VENV)/.pip setup.py pyproject.toml
	$(PIP) --editable '.[redis,rabbitmq,nats]' --group test
	@touch $@

$(VENV)/.lint $(VENV)/.mutants $(VENV)/.dist $(VENV)/.docs: $(VENV)/.test
	$(PIP) --group $(@F:.%=%)
	@touch $@
