# Everything runs in .venv; the first target that needs it creates it.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo train test test-long test-fast check audit bench clean

demo: $(STAMP)
	$(BIN)/control demo

# Hours. Needs the text files of the O*NET database 27.0 (onetcenter.org) in build/onet-database. Two
# processes of one thread took 0.85 of the time of one with two threads; interrupted, it goes on.
TWICE := OMP_NUM_THREADS=1 $(BIN)/torchrun --standalone --nproc-per-node=2 -m slmrank.cli.main
train: $(STAMP)
	$(TWICE) finetune build/train.yaml
	$(BIN)/control prune build/train.yaml
	$(TWICE) recover build/train.yaml
	$(BIN)/control export build/train.yaml --out build/ranker
	$(TWICE) recover build/more.yaml
	$(BIN)/control export build/more.yaml --out artifacts/more
	cp artifacts/more/pruned/* build/ranker/pruned/

# A quarter of an hour on two cores: every part once, on real programs.
test: $(STAMP)
	$(BIN)/python -m pytest -m "not long"

# The rest: more cases, more faults, whole clusters. CI runs both.
test-long: $(STAMP)
	$(BIN)/python -m pytest -m long

test-fast: $(STAMP)
	$(BIN)/python -m pytest -m "not slow and not long and not triton and not perf"

# Our CPU engine beside other servers and libraries, each in an environment of its own (about 8 GB in
# .bench, once); then at most 40 minutes. One of them: make bench PEERS="onnxruntime".
bench: $(STAMP)
	$(BIN)/python perf/bench.py build/demo.yaml $(addprefix --peer ,$(PEERS))

check: $(STAMP) audit
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy perf/*.py

# What the environment holds (CycloneDX), and which of it has known vulnerabilities, where the index
# can be asked. They are told and fail nothing: a new one somewhere must not stop every change.
audit: $(STAMP)
	mkdir -p dist
	$(BIN)/cyclonedx-py environment $(BIN)/python --output-format JSON --output-file dist/sbom.json
	-$(BIN)/pip-audit --skip-editable --progress-spinner off --timeout 5 2>/dev/null | grep -v 'could not be audited' | tail -n 20

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) and sys.version_info < (3, 13) else "the tested packages need Python 3.11 or 3.12, this is " + sys.version.split()[0] + ". Fix: make PYTHON=python3.11")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(BIN)/python -m pip --version > /dev/null 2>&1 || $(BIN)/python -m ensurepip -q
	@echo "Installing the tested packages into $(VENV): about 3 GB, one to five minutes, once."
	$(BIN)/python -m pip install --disable-pip-version-check -q -c constraints.txt -e '.[train,local,dev]'
	touch $(STAMP)

clean:
	rm -rf $(VENV) artifacts dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find control tests model_repository -name __pycache__ -type d -prune -exec rm -rf {} +
