# make demo   set everything up and see the whole story on the embedded digits
# make test   set everything up and run the tests
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CHECK := build/check

.PHONY: demo test test-slow check format bench zoo zoo-passes clean
.DELETE_ON_ERROR:

demo: $(VENV)/train.stamp
	$(BIN)/onnxprune demo

test: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -n auto

test-slow: $(VENV)/dev.stamp
	$(BIN)/python -m pytest -m "slow or not slow" --hypothesis-profile=default

# Plain editable installs are invisible to type checkers, so the built copy is checked.
check: $(VENV)/dev.stamp
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	rm -rf $(CHECK) && $(BIN)/python -m pip install --quiet --no-deps --target $(CHECK) .
	$(BIN)/mypy $(CHECK)/onnxprune
	PYTHONPATH=$(CHECK) $(BIN)/lint-imports

format: $(VENV)/dev.stamp
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

bench: $(VENV)/dev.stamp
	$(BIN)/python benchmarks/quickstart.py

# One row per graph of the zoo: what can be cut, and that a cut equals the dense model with zeroed channels.
zoo: $(VENV)/dev.stamp
	$(BIN)/python -m benchmarks.zoo.run --cache build/zoo --reasons

# One row per recipe: every pass on every graph, where it must change nothing and where it goes far.
zoo-passes: $(VENV)/dev.stamp
	$(BIN)/python -m benchmarks.zoo.passes --cache build/zoo

clean:
	rm -rf build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache onnxprune-demo

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed; set PYTHON=python3.11") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)

# A stamp is newer than pyproject.toml once the extras that it names are installed.
$(VENV)/train.stamp: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[train]'
	touch $@

$(VENV)/dev.stamp: pyproject.toml | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[train,dev]'
	touch $@ $(VENV)/train.stamp
