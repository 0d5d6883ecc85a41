#!/bin/sh
# Both recipes beside this file run it as root in Debian 12, in a folder with what `make setup` reads: the environment of requirements.lock.
set -eu
apt-get update
# A compiler for torch.compile; the libraries of InfiniBand for NCCL.
apt-get install --yes --no-install-recommends ca-certificates g++ gcc git ibverbs-providers libibverbs1 make \
    python3 python3-dev python3-venv
apt-get clean
rm -rf /var/lib/apt/lists/*
git config --system --add safe.directory '*' # the clone that is mounted belongs to another user
cd "$(dirname "$0")/.."
PIP_NO_CACHE_DIR=1 make setup
