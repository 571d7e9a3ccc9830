# Every target makes .venv if it is missing or older than pyproject.toml or constraints.txt, so a fresh machine needs git, make and Python 3.11 only.
#   make PYTHON=/path/to/python3.12 ...   another Python        make UV= ...   pip instead of uv
#   make demo ARGS="--seed 8"             arguments for `vlm demo`;  make test ARGS="-k splice"   for pytest
export OMP_WAIT_POLICY = passive
BIN := .venv/bin
TWO_AT_A_TIME := $(BIN)/pytest -n 2 --dist worksteal
DEMO := .venv/.installed-demo
DEV := .venv/.installed-dev

.DEFAULT_GOAL := help
.PHONY: help demo test test-all check install clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-9s %s\n", $$1, $$2 }' Makefile

demo: $(DEMO) ## train a small vision-language model on real pictures and look at its report (3 to 10 minutes)
	$(BIN)/vlm demo $(ARGS)

test: $(DEV) ## the tests without the slow ones (at most 8 minutes on 2 cores)
	$(TWO_AT_A_TIME) -m "not slow and not network and not gpu" $(ARGS)

test-all: $(DEV) ## all tests that need neither a hub nor a GPU; last those whose time is measured, with the machine to themselves
	$(TWO_AT_A_TIME) -m "not alone and not network and not gpu" $(ARGS)
	$(BIN)/pytest -m alone $(ARGS) || [ $$? = 5 ]  # 5: ARGS chose none of them

check: $(DEV) ## what CI checks before the tests: style, types, layers
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyrefly check
	$(BIN)/lint-imports

install: $(DEV) ## .venv with everything that tests and checks need
	@command -v vlm >/dev/null || echo 'Put vlm on your PATH: source .venv/bin/activate'

clean: ## remove caches and .venv; runs/ and data/ stay
	rm -rf .venv .pytest_cache .ruff_cache .import_linter_cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# dev contains demo, so it answers for both.
$(DEMO): pyproject.toml constraints.txt
	@.ci/install demo
	@touch $@

$(DEV): pyproject.toml constraints.txt
	@.ci/install dev
	@touch $(DEMO) $@
