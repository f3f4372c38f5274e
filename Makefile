# Everything a newcomer types. `make help` lists it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
.DEFAULT_GOAL := help
.PHONY: help setup demo test slow faults docs sync bench clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-7s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv and install genesis in it, with the tools for tests and docs

$(READY): settings.ini setup.py pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
	  { echo "genesis needs Python 3.10 or newer, and '$(PYTHON)' is not that. Name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3"; exit 2; }
	@$(PYTHON) -m venv $(VENV) || { echo "'$(PYTHON) -m venv' failed; on Debian and Ubuntu it needs: apt install python3-venv"; exit 2; }
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup ## simulate, train, generate and compare: about 3 minutes on 2 cores; the result is runs/demo/report.html
	$(BIN)/genesis demo

test: export OMP_NUM_THREADS = 1
test: setup ## exports in sync, every notebook, every test
	$(BIN)/python -m pytest --quiet tests/test_house.py
	$(BIN)/nbdev_test --n_workers 2 --do_print
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -m 'not slow'

slow: export OMP_NUM_THREADS = 1
slow: setup ## what the tests leave out because it takes minutes: lesson cells and tests marked "slow"
	$(BIN)/nbdev_test --n_workers 2 --do_print --flags slow
	$(BIN)/python -m pytest -m slow

faults: export OMP_NUM_THREADS = 1
faults: export GENESIS_KILLS = 100
faults: setup ## the long form of what tests of kills try in short: a hundred of them, some ten minutes
	$(BIN)/python -m pytest --quiet tests/test_training.py -k kills

docs: setup ## the site, in _docs/ (with Quarto where it is installed, else smalldocs)
	$(BIN)/python scripts/docs.py

sync: setup ## after editing notebooks: export modules, clean notebooks, write README.md
	$(BIN)/nbdev_export
	$(BIN)/nbdev_clean
	$(BIN)/python scripts/readme.py

bench: setup ## run each benchmarks/*.py
	@set -e; for file in $(sort $(wildcard benchmarks/*.py)); do echo "== $$file"; $(BIN)/python $$file; done

clean: ## remove what tests and docs left; .venv and runs/ stay
	rm -rf _docs _proc build dist *.egg-info .pytest_cache .hypothesis
	find genesis nbs tests scripts -name __pycache__ -prune -exec rm -rf {} +
