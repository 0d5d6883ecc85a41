# make demo: from images to a table, curves and a report, on this machine. make study: the claim at a small size. make test: tests.
# make plan: what is left of a study and what it costs. make bench: speed benchmarks. make slurm-test: a cluster on this machine.
# All of them use .venv, made from requirements.lock.

PYTHON ?= python3
UV := $(shell command -v uv)
VENV := .venv
IMPORTED := diffusers, dvc, maskdit, snakemake, timm, torch_fidelity, torchvision
INSTALLED := $(VENV)/installed-$(firstword $(shell cat requirements.lock pyproject.toml | cksum))
export PATH := $(CURDIR)/$(VENV)/bin:$(PATH)
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: demo study sweep ablations plan setup test lint check test-slow slurm-test gpu-test bench lock

demo: setup
	snakemake
	@maskdit show demo

# DiT, MaskDiT and TREAD on Fashion-MNIST, three seeds each: about two hours on two cores with bf16. The sweeps of learning
# rate, guidance and EMA width, and the ablations, go on from what the study has made. All three can be interrupted.
study: setup
	snakemake fashion
	@maskdit show fashion

sweep: setup
	snakemake results/sweep_fashion-lr.csv results/sweep_fashion-sweep.csv results/report_fashion.html

ablations: setup
	snakemake results/table_fashion-ablation.csv results/report_fashion.html

# Before a run, make plan STUDY=demo: jobs, device time and disk by step. DEVICE=cpu: on another device than the last one used.
STUDY ?= fashion
plan: setup
	@maskdit plan $(STUDY)$(if $(DEVICE), --device $(DEVICE))

setup: $(INSTALLED)

# Use uv if it is installed, else the environment's own pip, which may be missing after an interrupted setup. uv compiles no bytecode
# unless told to, as pip does: without it, where PYTHONDONTWRITEBYTECODE is set, as in many containers, each step imports for 8 s more.
ifneq ($(UV),)
WHOLE := $(VENV)/bin/python -c pass
CREATE := uv venv --quiet --clear --python $(PYTHON) $(VENV)
INSTALL := uv pip install --quiet --compile-bytecode --python $(VENV)/bin/python
else
WHOLE := $(VENV)/bin/python -m pip --version
CREATE := $(PYTHON) -m venv --clear $(VENV)
INSTALL := $(VENV)/bin/python -m pip install --quiet
endif

# make setup TORCH_INDEX=URL: install PyTorch without CUDA from there, in the versions of the lock file; the rest as usual.
LOCK := requirements.lock
ifdef TORCH_INDEX
LOCK := $(VENV)/requirements.lock
CUDA := ^(torch|torchvision|triton|nvidia-[^=]*|cuda-[^=]*)==
TORCH := $(shell sed -nE 's/^((torch|torchvision)==[^ ]*).*/\1/p' requirements.lock)
endif

# --no-deps: the lock file is complete, and one package in it declares outdated pins that must be ignored.
$(INSTALLED):
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { \
		echo "make setup: $(PYTHON) is not Python 3.11 or newer; name one: make setup PYTHON=python3.12" >&2; exit 2; }
	@[ -z "$$CONDA_PREFIX" ] || [ "$(origin PYTHON)" != file ] || { \
		echo "make setup: a conda environment is active, which is untested; run conda deactivate, or name its Python:" \
		"make setup PYTHON=$$CONDA_PREFIX/bin/python3" >&2; exit 2; }
	@echo "Installing $$(grep -c == requirements.lock) packages into $(VENV) ($(if $(TORCH_INDEX),without CUDA,on Linux about 6 GB))"
	@$(WHOLE) >/dev/null 2>&1 || $(CREATE) || { \
		echo "make setup: $(PYTHON) cannot create environments; install its venv module (Debian: apt install python3-venv) or uv" >&2; exit 2; }
ifdef TORCH_INDEX
	awk '/^[a-z]/ { cuda = /$(CUDA)/ } !cuda' requirements.lock > $(LOCK)
	$(INSTALL) --no-deps --index-url $(TORCH_INDEX) $(TORCH)
endif
	$(INSTALL) --no-deps --require-hashes --requirement $(LOCK)
	$(INSTALL) --no-deps --no-build-isolation --editable .
	$(VENV)/bin/python -c "import $(IMPORTED)"
	rm -f $(VENV)/installed-*
	touch $@

test: setup
	pytest --numprocesses 2 --dist loadfile -m "not slow and not slurm"

test-slow: setup
	pytest -m slow

# A cluster of four nodes on this machine. Needs root and Debian's slurm-wlm and munge; otherwise the tests are skipped.
slurm-test: setup
	pytest -m slurm -rs

# Speed benchmarks on this machine: about forty minutes on a CPU with bf16, longer on others.
bench: setup
	MASKDIT_FORCE=1 snakemake --force results/bench_cpu.csv
	@cat results/bench_cpu.md

# Checks of this machine's GPU: a line as each one ends, and results/gpu.csv. Nothing happens where there is none.
gpu-test: setup
	python -m maskdit.tools.gpu_test

lint: setup
	ruff check
	ruff format --check
	mypy
	lint-imports
	snakefmt --check Snakefile workflow

# Run this before each commit.
check: lint
	pytest --numprocesses 2 --dist loadfile -m "not slow and not slurm and not pipeline"

# Update the lock file with uv: the newest versions that pyproject.toml allows, with hashes, for Linux and macOS on x86 and ARM.
lock:
	uv pip compile --quiet --upgrade --universal --python-version 3.11 --generate-hashes --no-annotate --no-header \
		--extra dev --group lock --output-file requirements.lock pyproject.toml

# The JSON schema of params.yaml for editors, the page of its keys, and the picture of the packages.
.PHONY: schema
schema:
	python -m maskdit.config.schema > workflow/schemas/params.schema.json.new
	mv workflow/schemas/params.schema.json.new workflow/schemas/params.schema.json
	python docs/keys.py
	python docs/rooms.py

# Update README and docs/ from results/: the curves, claims and tables of STUDY, and the speed.
.PHONY: docs
docs:
	python docs/readme.py "$(STUDY)"

# A site of docs/ and of the library's docstrings in site/, by an environment of its own.
SITE := $(VENV)-docs
.PHONY: docs-site
docs-site:
ifneq ($(UV),)
	uv venv --quiet --clear --python $(PYTHON) $(SITE)
	uv pip install --quiet --python $(SITE)/bin/python --group docs
else
	$(PYTHON) -m venv --clear $(SITE)
	$(SITE)/bin/python -m pip install --quiet "pip>=25.1"
	$(SITE)/bin/python -m pip install --quiet --group docs
endif
	NO_MKDOCS_2_WARNING=1 $(SITE)/bin/mkdocs build --quiet --strict
	@echo "open site/index.html in a browser"
