# Every target sets up .venv by itself; nothing is needed but make and Python 3.11 or newer.

BIN := .venv/bin
OLDEST_JAX := 0.8.0
FLAX_OF_ITS_TIME := 0.12.0
GPU_PYTHON ?= .venv-gpu/bin/python
MINUTES ?= 8
WORKERS ?= 3
CHAPTERS := $(sort $(wildcard chapters/*.ipynb))
NEW_ENOUGH := import sys; sys.exit(sys.version_info < (3, 11))
PYTHON := $(or $(PYTHON),$(shell for python in python3 python python3.13 python3.12 python3.11; do \
	$$python -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$python && break; done))

NEWEST_PYTHON = $(shell for python in python3.13 python3.12 $(PYTHON); do \
	$$python -c '$(NEW_ENOUGH)' 2>/dev/null && echo $$python && break; done)

export PIP_DISABLE_PIP_VERSION_CHECK := 1
# LAPACK's own threads would fight over the cores with JAX's, and with those of a second process.
test test-oldest test-newest book chapters figures bench rehearse: export OPENBLAS_NUM_THREADS := 1

# Unit tests run each program a few times only, so most of their time is its compilation. The
# chapters are checked with the compiler as it is.
quick_compiler = XLA_FLAGS="$$($(1) tests/quick_compiler.py)"

# What a GPU's plan compiles is kept, in a folder small enough to be carried along.
GPU_CACHE := JAX_COMPILATION_CACHE_DIR=$(CURDIR)/build/compiled JAX_COMPILATION_CACHE_MAX_SIZE=40000000

.PHONY: help setup book test test-oldest test-newest lab chapters figures bench bench-gpu gpu rehearse \
	lock clean

help:
	@echo 'make book         run the chapters and build the site in build/site'
	@echo 'make test         style, types, unit tests, and every chapter against its stored outputs'
	@echo 'make lab          open the chapters in JupyterLab'
	@echo 'make chapters     run the chapters and store their outputs'
	@echo 'make figures      draw every figure anew from its stored results'
	@echo 'make bench        time the library beside others'
	@echo 'make gpu          tests that matter on a GPU, then MINUTES=8 of the studies at their gpu scale'
	@echo 'make bench-gpu    time the methods on a GPU'
	@echo 'make rehearse     compile all programs of the gpu scale, on any machine'
	@echo 'make test-oldest  unit tests on JAX $(OLDEST_JAX), the oldest supported'
	@echo 'make test-newest  unit tests on the newest JAX and Python found'
	@echo 'make lock         choose the versions in requirements.lock anew'
	@echo 'make clean        remove everything that make has made'

# $(call install,folder,lock): an environment with exactly the packages of the lock. By pip, which
# every Python brings, where uv would have to be fetched first; uv makes the lock, once for all Pythons.
define install
	@$(or $(PYTHON),false) -c '$(NEW_ENOUGH)' || { \
		echo 'Python 3.11 or newer is needed: install it, or name it: make PYTHON=/path/to/python' >&2; exit 1; }
	@echo 'Setting up $(1) with $(PYTHON) (about a minute)'
	@$(PYTHON) -m venv --clear $(1)
	@$(2) > $(1)/requirements.txt
	@$(1)/bin/python -m pip install --quiet --no-deps -r $(1)/requirements.txt
endef

.venv/requirements.stamp: requirements.lock
	$(call install,.venv,cat requirements.lock)
	@touch $@

.venv-oldest/requirements.stamp: requirements.lock
	$(call install,.venv-oldest,sed -E 's/^(jax|jaxlib)==.*/\1==$(OLDEST_JAX)/; s/^flax==.*/flax==$(FLAX_OF_ITS_TIME)/' requirements.lock)
	@touch $@

%/package.stamp: %/requirements.stamp pyproject.toml
	@$*/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	@touch $@

setup: .venv/package.stamp

test: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(call quick_compiler,$(BIN)/python) MPLBACKEND=agg $(BIN)/python -m pytest -n 2
	$(if $(CHAPTERS),$(BIN)/python -m pytest -n 2 --dist loadfile --nbval --nbval-current-env $(CHAPTERS))

test-oldest: .venv-oldest/package.stamp
	$(call quick_compiler,.venv-oldest/bin/python) MPLBACKEND=agg .venv-oldest/bin/python -m pytest -n 2

# The lock is for the Pythons that all its packages have; the newest JAX may need a newer one.
.venv-newest/requirements.stamp: pyproject.toml
	@echo 'Setting up .venv-newest with $(NEWEST_PYTHON) (about a minute)'
	@$(NEWEST_PYTHON) -m venv --clear .venv-newest
	@.venv-newest/bin/python -m pip install --quiet hatchling \
		$$(.venv-newest/bin/python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]; print(*p["dependencies"], *p["optional-dependencies"]["test"], sep="\n")' | tr -d ' ')
	@touch $@

test-newest: .venv-newest/package.stamp
	$(call quick_compiler,.venv-newest/bin/python) MPLBACKEND=agg .venv-newest/bin/python -m pytest -n 2

book: setup
	@rm -rf build/book build/site
	@mkdir -p build/book/source/chapters
	@cp -R book/. build/book/source
	$(BIN)/python book/execute.py build/book/source/chapters $(CHAPTERS)
	$(BIN)/sphinx-build -q -W --keep-going -d build/book/doctrees build/book/source build/site
	@echo 'The book: $(CURDIR)/build/site/index.html'

chapters: setup
	$(BIN)/python book/execute.py chapters $(CHAPTERS)

lab: setup
	$(BIN)/jupyter lab chapters

figures: setup
	$(BIN)/soaa-edu draw all

# The lock and JAX's own libraries for NVIDIA; not made where GPU_PYTHON names another Python.
.venv-gpu/requirements.stamp: requirements.lock
	$(call install,.venv-gpu,cat requirements.lock)
	@.venv-gpu/bin/python -m pip install --quiet "jax[cuda12]==$$(sed -n 's/^jax==//p' requirements.lock)"
	@touch $@

gpu: $(if $(filter .venv-gpu/%,$(GPU_PYTHON)),.venv-gpu/package.stamp)
	$(GPU_PYTHON) -m pytest -q tests/test_precision.py tests/test_roots.py
	$(GPU_CACHE) $(GPU_PYTHON) -m soaa_edu plan --scale gpu --run --minutes $(MINUTES) --workers $(WORKERS)

bench-gpu: $(if $(filter .venv-gpu/%,$(GPU_PYTHON)),.venv-gpu/package.stamp)
	$(GPU_CACHE) $(GPU_PYTHON) -m benchmarks.gpu

rehearse: setup
	$(call quick_compiler,$(BIN)/python) $(BIN)/python -m soaa_edu rehearse all

build/peers/requirements.stamp: benchmarks/peers.txt
	$(call install,build/peers,cat benchmarks/peers.txt)
	@touch $@

# The peers need an older JAX; where they don't install, the benchmarks go on without them.
bench: setup
	-@$(MAKE) --no-print-directory build/peers/requirements.stamp
	$(BIN)/python -m benchmarks

lock: setup
	@$(PYTHON) -m venv --clear build/uv
	@build/uv/bin/python -m pip install --quiet uv
	@$(BIN)/python -c 'import tomllib; build = tomllib.load(open("pyproject.toml", "rb"))["build-system"]; print(*build["requires"], sep="\n")' \
		| build/uv/bin/uv pip compile --quiet --upgrade --universal --python-version 3.11 --fork-strategy fewest \
			--no-annotate --no-header --no-emit-index-url --no-emit-find-links \
			--extra test --extra site --extra bench pyproject.toml - --output-file requirements.lock

clean:
	rm -rf build .venv .venv-oldest .venv-newest .venv-gpu .mypy_cache .pytest_cache .ruff_cache
