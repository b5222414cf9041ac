# `make` lists the targets. All of them run in .venv, which the first one makes.

PYTHON  ?=
TORCH   ?=
# A test process starts ranks, so it keeps about two cores busy.
WORKERS ?= $(shell n=$$(nproc 2>/dev/null || getconf _NPROCESSORS_ONLN); echo $$((n < 4 ? 2 : n > 16 ? 8 : n / 2)))
ARGS    ?=

VENV  := .venv
BIN   := $(VENV)/bin
READY := $(VENV)/.ready
LAB   := $(VENV)/.lab
SH    := .ci/run slurm/submit.sh slurm/jobs.sbatch slurm/index.sbatch slurm/site.example.sh

# The releases that the baseline's citations are checked against, and where their wheels are kept.
SGLANG := 0.5.6 0.5.6.post1 0.5.6.post2 0.5.7 0.5.8 0.5.8.post1 0.5.9 0.5.10 0.5.10.post1
WHEELS := .cache/wheels

.DEFAULT_GOAL := help
.PHONY: help report publish test faults lint notebooks citations derive clean
MAKEFLAGS += --no-print-directory

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' Makefile
	@printf '%s\n' '' 'Variables:' \
	    '  ARGS="..."          passed on: make test ARGS="-k ulysses", make report ARGS="--help"' \
	    '  WORKERS=2           test processes; by default half the cores, 2 to 8' \
	    '  PYTHON=python3.12   the Python that makes .venv (3.11 or newer)' \
	    '  TORCH=system        use the torch (2.11 to 2.13) that PYTHON has; TORCH=2.12.0: that version'

report: $(READY) ## measure what is not measured yet, then render reports/index.html
	@$(BIN)/wanreport report $(ARGS)

publish: $(READY) ## render the committed records alone, to commit: reports/published/index.html
	@$(BIN)/wanreport publish $(ARGS)

test: $(READY) ## run the tests
	@$(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup $(ARGS)

faults: $(READY) ## run the tests of docs/faults.md that take longer
	@$(BIN)/python -m pytest -m faults $(ARGS)

lint: $(READY) ## check style, types and shell scripts
	@$(BIN)/ruff check && $(BIN)/ruff format --check --quiet
	@$(BIN)/mypy
	@$(BIN)/shellcheck $(SH) && echo "shellcheck: no issues found in $(words $(SH)) scripts"

notebooks: $(LAB) ## open the notebooks in JupyterLab
	@$(BIN)/jupyter lab --notebook-dir . --LabApp.default_url=/lab/tree/notebooks $(ARGS)

citations: $(READY) ## check the baseline's citations of SGLang again; fetches its wheels (40 MB)
	@for version in $(SGLANG); do \
	    ls $(WHEELS)/sglang-$$version-*.whl >/dev/null 2>&1 || \
	    $(BIN)/python -m pip --quiet --disable-pip-version-check download --no-deps \
	        --only-binary :all: --dest $(WHEELS) sglang==$$version || exit 1; \
	done
	@$(BIN)/python -m tools.citations $(WHEELS)

derive: $(READY) ## compute the model's sizes for the baseline again
	@$(BIN)/python -m tools.derive

clean: ## remove .venv, pages and caches; records and published pages stay
	@rm -rf $(filter-out reports/published,$(wildcard reports/*))
	@rm -rf $(VENV) build dist .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -not -path './.git/*' -prune -exec rm -rf {} +

# torch goes first and alone: asked for by its exact version, pip takes a local wheel of it where
# there is one, and never a second torch beside it. pip itself is renewed before that, because old
# resolvers try every version of everything.
$(READY): pyproject.toml constraints.txt
	@set -eu; \
	python=; \
	for p in $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python); do \
	    if $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	    then python=$$p; break; fi; \
	done; \
	if [ -z "$$python" ]; then \
	    echo "make: no Python 3.11 or newer found; name one: make report PYTHON=/path/to/python3" >&2; \
	    exit 1; \
	fi; \
	echo "Setting up $(VENV) with $$($$python -V), once; this takes a few minutes."; \
	case "$(TORCH)" in \
	    '')     site=; torch=$$(grep '^torch==' constraints.txt) ;; \
	    system) site=--system-site-packages; torch= ; \
	            $$python -c 'import torch; v = tuple(map(int, torch.__version__.split(".")[:2])); assert (2, 11) <= v < (2, 14), torch.__version__' \
	            || { echo "make: TORCH=system needs torch 2.11 to 2.13 in $$python" >&2; exit 1; } ;; \
	    *)      site=; torch=torch==$(TORCH) ;; \
	esac; \
	$$python -m venv $$site $(VENV) || { \
	    echo "make: $$python cannot make a venv; on Debian and Ubuntu: apt install python3-venv" >&2; \
	    exit 1; \
	}; \
	pip="$(BIN)/python -m pip --quiet --disable-pip-version-check install"; \
	pins=$(VENV)/constraints.txt; \
	if [ -n "$(TORCH)" ]; then grep -v '^torch==' constraints.txt; else cat constraints.txt; fi > $$pins; \
	$$pip --upgrade 'pip>=25'; \
	if [ -n "$$torch" ]; then echo "  1/2 $$torch"; $$pip -c $$pins "$$torch"; fi; \
	echo "  2/2 wanreport and what it needs"; \
	$$pip -c $$pins -e '.[dev]'; \
	printf '%s\n' '$(CURDIR)' > $@

# Its scripts name its place. Those of a checkout that was moved or copied are told the new one.
# The place it was made in is in .ready, else in a script. A link to another's .venv stays as it is.
MADE := $(shell [ -L $(VENV) ] || [ ! -f $(READY) ] || { cat $(READY); \
    sed -n '1,2s|^[^/]*\(/.*\)/$(VENV)/bin/python.*|\1|p' $(BIN)/wanreport; } 2>/dev/null | head -n 1)
ifneq ($(MADE),)
ifneq ($(MADE),$(CURDIR))
$(info $(VENV) was made in $(MADE): its scripts now name this folder.)
$(shell old=$$(printf '%s' '$(MADE)' | sed 's/[][\.*^$$|]/\\&/g'); \
    new=$$(printf '%s' '$(CURDIR)' | sed 's/[\&|]/\\&/g'); \
    grep -lIF -- '$(MADE)/' $(BIN)/* $(VENV)/pyvenv.cfg | xargs sed -i "s|$$old/|$$new/|g"; \
    sed -i "s|^$$old\$$|$$new|" $(VENV)/lib/python*/site-packages/*.pth; \
    printf '%s\n' '$(CURDIR)' > $(READY).new; \
    touch -r $(READY) $(READY).new; mv $(READY).new $(READY))
endif
endif

# JupyterLab is a third of the download, so only those who open it pay for it. The setting makes a
# click on a .py file open it as the notebook that it is.
$(LAB): $(READY)
	@echo "Installing JupyterLab into $(VENV), once."
	@$(BIN)/python -m pip --quiet --disable-pip-version-check install -c $(VENV)/constraints.txt -e '.[lab]'
	@mkdir -p $(VENV)/share/jupyter/lab/settings
	@echo '{"@jupyterlab/docmanager-extension:plugin": {"defaultViewers": {"python": "Jupytext Notebook"}}}' \
	    > $(VENV)/share/jupyter/lab/settings/overrides.json
	@touch $@
