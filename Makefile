# Every command of this checkout. `make help` prints this table; CI runs the same targets (.ci/run).
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

BIN := .venv/bin
LAYERS := unit contract bus proxy k8s bpf lab
C_FILES = $(shell find bench cni services tools -name '*.[ch]' 2>/dev/null)
CFLAGS ?= -O2 -g -Wall -Wextra -Werror

.PHONY: help setup programs demo docs image fmt check check-python check-types check-imports check-c test bench lock protos clean
.PHONY: $(LAYERS:%=test-%) guest-setup test-guest instructions packets

help: ## what there is to type
	@if [ -t 1 ]; then bold=$$'\033[1m' plain=$$'\033[0m'; else bold= plain=; fi; \
	    awk -F ':.*## ' -v bold="$$bold" -v plain="$$plain" \
	    '/^[a-z%-]+:.*## / { printf "  %smake %-12s%s  %s\n", bold, $$1, plain, $$2 }' $(MAKEFILE_LIST)

setup: ## install what is needed (Debian packages, .venv by the lock, C programs); quick the second time
	@tools/setup.sh

demo: setup ## a three-node cluster on this machine: pods, a Service, a policy, and who reached whom
	@$(BIN)/plexus demo

fmt: setup ## format Python and C in place
	@$(BIN)/ruff check --quiet --fix-only .
	@$(BIN)/ruff format --quiet .
	@$(if $(C_FILES),$(BIN)/clang-format -i $(C_FILES))

check: setup check-python check-types check-imports check-c ## lint, format, types, import contracts, C format

check-python: setup
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .

check-types: setup
	@$(BIN)/mypy

check-imports: setup
	@$(BIN)/lint-imports --no-logo --cache-dir build/imports

check-c: setup
	@$(if $(C_FILES),$(BIN)/clang-format --dry-run --Werror $(C_FILES))

test: setup ## every layer of tests, in this order: unit, contract, bus, proxy, k8s, bpf, lab
	@tools/layers.sh $(LAYERS)

$(LAYERS:%=test-%): test-%: setup
	@tools/layers.sh $*

test-%: ## one layer: make test-unit

guest-setup: setup ## have qemu and Debian's own kernel (15 and 70 MB to fetch, the second time nothing)
	@$(BIN)/python -m tools.guest setup

# Compiled here, where it takes seconds; the guest only loads.
test-guest: setup ## the tests that need Debian's own kernel, in an emulated machine (first: make guest-setup)
	@$(BIN)/python -m tools.guest check
	@$(BIN)/python -m tests.guest.prepare
	@PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 $(BIN)/python -m tools.guest run --timeout 900 -- \
	    $(BIN)/python -m pytest -c tests/guest/pytest.ini tests/guest

bench: setup ## what packets, pod starts and policy changes cost, beside plain Linux routing
	@$(BIN)/python -m bench

instructions: setup ## how large each program is and what the verifier goes through, anew into bench/instructions.json
	@$(BIN)/python -m bench.instructions

packets: setup ## what packets cost beside a program that never changes, anew into bench/packets.json
	@$(BIN)/python -m bench --only packets --record

docs: setup ## write docs/events.md, docs/settings.md, tables of docs/map-sizes.md and of deploy/k8s anew from their sources
	@mkdir -p build
	@$(BIN)/python -m tools.events_doc > build/events.md && mv build/events.md docs/events.md
	@$(BIN)/python -m tools.settings_doc
	@$(BIN)/python -m tools.chart

protos: setup ## write the Python of .proto files anew
	@$(BIN)/python -m tools.protos

image: setup ## build the image of everything by docker (BASE=... in the place of debian:12-slim)
	@$(BIN)/python -m tools.image
	@docker build --tag plexus:$$($(BIN)/python -c 'from importlib.metadata import version; print(version("plexus"))') \
	    $(if $(BASE),--build-arg BASE=$(BASE)) build/image

lock: ## resolve pyproject.toml into requirements.lock anew
	@tools/lock.sh $(LOCK_OPTIONS)

clean: ## remove what was built and cached; .venv stays
	@$(MAKE) -C cni clean
	@rm -rf build *.egg-info
	@find . -name __pycache__ -not -path './.venv/*' -prune -exec rm -rf {} +

# C programs outside the kernel, rebuilt when their source is newer.
programs: build/load build/survive
	@$(MAKE) -C cni

build/load build/survive: build/%: bench/%.c
	@mkdir -p $(@D)
	@$(CC) $(CFLAGS) -o $@.$$$$ $< && mv $@.$$$$ $@
