# Every target sets .venv up by itself; nothing else is installed and nothing outside this folder is touched.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.ready

.PHONY: test lint demo bench interop compiled wheel fuzz checklist format clean setup

setup: $(STAMP)

$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --upgrade 'pip>=25.1'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[all]' --group test --group lint --group compile --group wheel
	touch $@

# Unit tests, without a network where the machine allows a network namespace.
test: $(STAMP)
	tools/offline.sh $(BIN)/python -m pytest -q -m "not interop" $(ARGS)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The sans-IO core compiled by mypyc in a copy of the tree, and the tests of it and of its users run on the result.
compiled: $(STAMP)
	$(BIN)/python tools/compile_core.py build/compiled
	cd build/compiled && TSNETPY_EXPECT_COMPILED=1 ../../tools/offline.sh ../../$(BIN)/python -m pytest -q -m "not interop" $$(cat core-tests.txt) $(ARGS)

# Source distribution and wheel, tried from an empty environment outside this folder.
wheel: $(STAMP)
	tools/check_wheel.sh $(BIN)/python

# The main job on the embedded tailnet: a page of a local web app, fetched by name through Serve.
demo: $(STAMP)
	$(BIN)/python -m apps.demo

# Real peers in network namespaces: Headscale, official clients, OpenSSH, curl. Root and Go only; says why it skips.
interop: $(STAMP)
	$(BIN)/python -m pytest -q -m interop tests/interop $(ARGS)

# tsnetpy, interpreted and compiled, against Go's tsnet and wireguard-go in one run, as ratios.
bench: $(STAMP)
	$(BIN)/python -m benchmarks.compare $(ARGS)

# Coverage-guided fuzzing of IP and WireGuard input for 60 s; seeded random packets where atheris has no wheel.
fuzz: $(STAMP)
	-$(BIN)/python -m pip install --quiet --disable-pip-version-check --group fuzz
	$(BIN)/python -m tests.fuzz.fuzz_ingress $(or $(ARGS),40)
	$(BIN)/python -m tests.fuzz.fuzz_wireguard $(or $(ARGS),20)

# Which numbers of docs/checklist.md have no test.
checklist: $(STAMP)
	$(BIN)/python tools/checklist.py $(ARGS)

# Goodput over simulated links, written to tests/snapshots; `make test` compares with it.
snapshots: $(STAMP)
	$(BIN)/python -m benchmarks.netsim --write $(ARGS)

# packetdrill scripts that you supply (a checkout of github.com/google/packetdrill), in all variants: DIR=...
packetdrill: $(STAMP)
	$(BIN)/python -m tsnetpy.testing.packetdrill --variant all --no-skips $(ARGS) $(DIR)

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis .interop $(VENV)
