# Two commands: `make repro` runs the pipeline, `make test` the tests. Both create .venv first.
PYTHON ?= python3
BASE ?= origin/main
export PATH := $(CURDIR)/.venv/bin:$(PATH)
# Where this is set, as in many containers, every process would compile all of torch anew.
export PYTHONDONTWRITEBYTECODE :=
# DVC asks for the user's name, and a user whom a container knows by number alone has none.
export USER ?= uid-$(shell id -u)

.PHONY: repro test test-arm lint gate clean

# In a folder that came without git, an unpacked archive for example, DVC has to be told so.
repro: .venv/ready
	@if git rev-parse --git-dir > /dev/null 2>&1 || test -e .git; then \
		! grep -qs no_scm .dvc/config.local || dvc config --local --unset core.no_scm; \
	else dvc config --local core.no_scm true; fi
	python -m pipeline check
	dvc repro
	python -m pipeline results

test: .venv/ready # two files at a time; more threads would only wait for each other
	OMP_NUM_THREADS=1 pytest -n 2 --dist loadfile --no-loadscope-reorder

test-arm: .venv/ready # the bundles of models/bundles, on emulated Arm CPUs
	python -m tests.arm.emulated

gate: .venv/ready # what was committed, against BASE, both run anew on the profile `smoke`
	bash .github/gate.sh $(BASE)

lint: .venv/ready
	ruff check .
	ruff format --check .
	mypy

# uv unpacks on all cores and takes a sixth of pip's time, but reads none of pip's settings: the
# mirrors and folders that pip is told of on this machine are handed to it, to choose from as pip does.
pip_setting = $(shell python -m pip config list | sed -n "s/^[^=]*\.$(1)='\(.*\)'$$/\1/p" | sed 's/\\n/ /g')
SOURCES = --index-strategy unsafe-best-match $(foreach kind,index-url extra-index-url find-links, \
	$(addprefix --$(kind)=,$(call pip_setting,$(kind))))

.venv/bin/uv:
	$(PYTHON) -m venv .venv
	python -m pip install --quiet uv

.venv/ready: pyproject.toml .venv/bin/uv
	uv pip install --python .venv $(SOURCES) \
		--editable '.[all]'
	touch $@

clean: # results stay; DVC's cache and the environment go
	rm -rf .venv .dvc/cache .dvc/tmp .work
