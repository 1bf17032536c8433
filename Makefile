# Everything needs Python 3.10 to 3.13 and nothing else; `make PYTHON=python3.12 demo` chooses one.
PYTHON ?= python3
VENV_PYTHON = .venv/bin/python
# Processes that `make test` runs tests in; each may hold a ComfyUI, so more of them take memory rather than give time.
# One thread each: with more, OpenMP's threads wait for each other, and some tests take ten times as long.
JOBS ?= 2

.PHONY: demo run test test-versions fuzz bench setup lint clean distclean

## demo   set up, then make a picture with the bundled workflow in a real ComfyUI
demo: setup
	$(VENV_PYTHON) -m tools.demo

## run    ComfyUI with this extension; stays up and prints its address
run: setup
	$(VENV_PYTHON) -m tools.demo --stay

## test   ruff, types and all tests, in two processes: make JOBS=1 PYTEST_ARGS="tests/core -x" test
test: setup lint
	OMP_NUM_THREADS=1 $(VENV_PYTHON) -m pytest -n $(JOBS) $(PYTEST_ARGS)

## test-versions   the tests that matter with other versions of the packages: make test-versions SETS="oldest 2025"
test-versions: setup
	$(VENV_PYTHON) -m tools.versions $(SETS)

## fuzz   damage files of every kind in 5,000 ways (300 of them are in make test); FUZZ_ARGS="--case 7" repeats one
fuzz: setup
	$(VENV_PYTHON) -m tests.fuzz.run $(FUZZ_ARGS)

## bench  speed, memory and installation, measured
bench: setup
	$(VENV_PYTHON) -m tools.bench

## lint   ruff, its format, and mypy (a minute the first time, seconds after)
lint: setup
	$(VENV_PYTHON) -m ruff check . && $(VENV_PYTHON) -m ruff format --check . && $(VENV_PYTHON) -m tools.typecheck

setup:
	@$(PYTHON) tools/setup.py

## clean  remove the links and the output; distclean: also the cached environment they lead to
clean:
	@$(PYTHON) tools/setup.py --clean

distclean:
	@$(PYTHON) tools/setup.py --clean --cache
