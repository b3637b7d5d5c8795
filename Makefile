# `make` or `make help` lists what can be done here.

CARGO ?= cargo
# Seconds per fuzz target.
FUZZ_SECONDS ?= 600
# A soak run: seconds of random histories, rounds of signals, cases per property.
SOAK_SECONDS ?= 3600
SOAK_KILLS ?= 300
SOAK_CASES ?= 5000
BENCH_ARGS ?=

.DEFAULT_GOAL := help
.PHONY: all build test demo bench bench-memory bench-live bench-changes fuzz fuzz-corpora soak mutants lint fmt deps clean help

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

all: build test ## build and test

build: ## the release binary, target/release/voltar
	$(CARGO) build --release

test: ## everything that must be green; the last line has the counts
	@tests/run.sh

demo: ## a real disk there and back: back up, change, back up, verify, restore, damage
	@tests/demo.sh

bench: build ## voltar, its peers and the limits of this machine, end to end (BENCH_ARGS='--size 2')
	@benches/run.py $(BENCH_ARGS)

bench-memory: build ## peak memory on a 16 TiB sparse volume
	@benches/memory.sh

bench-live: build ## what a backup of a running VM costs its guest
	@benches/live.py

bench-changes: build ## what a backup costs when nothing or one chunk in a hundred changed
	@benches/changes.sh

fuzz: ## every fuzz target for FUZZ_SECONDS (default 600)
	@fuzz/smoke.sh --seconds $(FUZZ_SECONDS)

fuzz-corpora: ## keep what fuzzing found worth keeping: minimised, in fuzz/corpora
	@fuzz/smoke.sh --minimise

soak: ## random histories for SOAK_SECONDS, SOAK_KILLS signals, SOAK_CASES cases per property
	@SOAK_SECONDS=$(SOAK_SECONDS) SOAK_KILLS=$(SOAK_KILLS) SOAK_CASES=$(SOAK_CASES) tests/soak.sh

mutants: ## break voltar on purpose, one way after the other, and see which test notices
	@tests/mutants.sh

lint: ## formatting, clippy, and cargo-deny if it is installed
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	@if command -v cargo-deny >/dev/null; then $(CARGO) deny check; \
	else echo 'cargo-deny is not installed (cargo install cargo-deny --locked): licences and advisories unchecked'; fi

fmt: ## format the sources
	$(CARGO) fmt --all

deps: ## install the packages of tests/packages.txt that are missing (root, apt)
	@tests/deps.sh

clean: ## what was built, and the disks of the benchmarks
	$(CARGO) clean
	@# Only what the benchmarks made: the directory may be one of the user's.
	dir="$${VOLTAR_BENCH_DIR:-$${TMPDIR:-/var/tmp}/voltar-bench}"; rm -rf "$$dir"/disk-*m-* "$$dir"/scratch "$$dir"/memory.*
