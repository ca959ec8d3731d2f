# make train: everything on a fresh machine, then a real training run. make test: the same, then every test.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
CORPUS := corpora/python
ARGS ?=
# Where it finds no GPU, DeepSpeed's launcher warns twice unless it is told.
ifeq ($(wildcard /proc/driver/nvidia/version /dev/kfd),)
export DS_ACCELERATOR ?= cpu
endif

.PHONY: train test test-fast check corpus clean

train: $(VENV)/.installed corpus
	$(BIN)/deepspeed --quiet --num_gpus 1 train.py gpt_quickstart $(ARGS)

corpus: $(VENV)/.installed
	$(BIN)/python -m data prepare stdlib --out $(CORPUS) --vocab-size 8192 --split-valid 0.02

# Two files at a time: more than two trainings at once would slow each other down on a small machine.
TEST := $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: $(VENV)/.installed-dev
	$(TEST)

test-fast: $(VENV)/.installed-dev
	$(TEST) -m "not slow"

check: $(VENV)/.installed-dev
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

# torch first: deepspeed's build asks for it.
$(VENV)/.installed: pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and "Python 3.10 or later is needed: make PYTHON=python3.12 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt torch setuptools wheel
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt --no-build-isolation -e .[dev]
	touch $@

clean:
	rm -rf $(VENV)
