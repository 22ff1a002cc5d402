# Everything here can be repeated: a target that has been made is not made again.
SHELL := /bin/sh
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN := .venv/bin
# Processes that share the test suite, of one thread each; the files of tests are dealt out whole.
WORKERS ?= 2
# The slow tests wait for processes of their own: one more shares the same cores better.
SLOW_WORKERS ?= 3
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --dist loadfile
EXTRAS := pipeline,s3,gguf,peft,tune,lm,tensorboard,dev
PIP := $(BIN)/python -m pip --disable-pip-version-check

.PHONY: help demo test test-slow test-all check format serve ci clean bench-rule bench-ledger bench-merge bench-margins bench-tax bench-forgetting bench-gates bench-variety bench-check bench-harm bench-validate bench-eval bench-train bench-mfu vision-bases bench-floors

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' Makefile

.venv/.installed: pyproject.toml constraints.txt
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || \
	  { echo "Python 3.11 or newer is needed: apt-get install python3.11, or make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip' 2>/dev/null || \
	  { echo "Python's venv module is incomplete: apt-get install python3-venv" >&2; exit 1; }
	@command -v git >/dev/null || { echo "git is needed: apt-get install git" >&2; exit 1; }
	"$(PYTHON)" -m venv .venv
	$(PIP) install --quiet --constraint constraints.txt hatchling editables setuptools wheel
	$(PIP) install --quiet --constraint constraints.txt --no-build-isolation --editable ".[$(EXTRAS)]"
	@touch $@

.venv/.demo: .venv/.installed infra/demo-packages.txt
	$(PIP) install --quiet --no-deps --requirement infra/demo-packages.txt
	@touch $@

.venv/.test: .venv/.demo infra/test-packages.txt
	$(PIP) install --quiet --no-deps --requirement infra/test-packages.txt
	@touch $@

demo: .venv/.demo  ## Fine-tune a real sentiment model and release it, end to end
	@PATH="$(CURDIR)/.venv/bin:$$PATH" $(BIN)/retain run sentiment

test: .venv/.demo  ## Run the test suite (offline, CPU)
	$(PYTEST) -n $(WORKERS)

test-slow: .venv/.test  ## Run the slow tests: servers, whole pipelines, real weights and data
	$(PYTEST) -n $(SLOW_WORKERS) --timeout 1800 --durations 20 -m "e2e or realdata"

test-all: .venv/.test  ## Run every test that this machine can run
	$(PYTEST) -n $(SLOW_WORKERS) --timeout 1800 -m "not gpu"

check: .venv/.installed  ## Lint, formatting, types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.installed  ## Format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

serve: .venv/.installed  ## Start the Prefect server, a worker and the weekly schedule on this machine
	@PATH="$(CURDIR)/.venv/bin:$$PATH" $(BIN)/retain serve

bench-rule: .venv/.installed  ## The release rule: false PASS and power, beside two rival rules
	$(BIN)/python -m tests.bench.bench_rule

bench-ledger: .venv/.demo  ## Lineages of retrains: what is released when measured from the first base, or from the release before
	$(BIN)/python -m tests.bench.bench_ledger

bench-merge: .venv/.demo  ## The rescue: how often the report half confirms it, and what its search costs
	$(BIN)/python -m tests.bench.bench_merge

bench-margins: .venv/.demo  ## Which margins benchmarks carry: the demo's last run; with $$RETAIN_DATA, SmolLM2 on ARC, LAMBADA, …
	$(BIN)/python -m tests.bench.bench_margins
	if [ -n "$(RETAIN_DATA)" ]; then $(BIN)/python -m tests.bench.bench_margins_language; fi

bench-tax: .venv/.demo  ## What orchestration costs, as a share of the stages' own time
	$(BIN)/python -m tests.bench.bench_tax

bench-forgetting: .venv/.demo  ## Gain and forgetting, every method by itself, and ours of the same trainings; draws the front
	$(BIN)/python -m tests.bench.bench_forgetting

bench-gates: .venv/.installed  ## The data gates: false alarms, power, planted and natural defects found
	$(BIN)/python -m tests.bench.bench_gates
	$(BIN)/python -m tests.bench.bench_gate_tests

bench-variety: .venv/.test  ## Effective diversity of narrow and wide texts, under a language model and a sentence encoder
	$(BIN)/python -m tests.bench.bench_variety

# Older numpy and pandas than ours: an environment of its own. PyPI's torch for Linux brings CUDA; an index without it will do.
.venv-rivals/.installed: tests/bench/rivals.txt
	"$(PYTHON)" -m venv .venv-rivals
	.venv-rivals/bin/python -m pip --disable-pip-version-check install --quiet --requirement tests/bench/rivals.txt
	@touch $@

bench-check: .venv/.installed .venv-rivals/.installed  ## What the measures cost at a million rows, beside other programs
	$(BIN)/python -m tests.bench.bench_check

bench-validate: .venv/.installed  ## What validate costs at a million rows: time and peak memory
	$(BIN)/python -m tests.bench.bench_validate

bench-floors: .venv/.installed  ## What a linear model on words or pixels reaches on the recipes' test sets, in $$RETAIN_DATA
	$(BIN)/python -m tests.bench.bench_floors

bench-eval: .venv/.test  ## Likelihood benchmarks beside lm-evaluation-harness's command line: the same results, and how fast
	$(BIN)/python -m tests.bench.bench_eval

bench-train: .venv/.test infra/bench-packages.txt  ## Training speed and memory beside TRL and transformers' Trainer, on data in $$RETAIN_DATA
	$(PIP) install --quiet --no-deps --requirement infra/bench-packages.txt
	$(BIN)/python -m tests.bench.bench_train $(or $(STEPS),5) $(or $(ROWS),8) $(CASES)

bench-mfu: .venv/.installed  ## Model FLOPs utilisation of full fine-tuning and LoRA on the CUDA device that is there
	$(BIN)/python -m tests.bench.bench_mfu

bench-harm: .venv/.demo  ## The accuracy to expect elsewhere, beside the measured one, over real pairs ($$RETAIN_TEST_DATA, make vision-bases)
	$(BIN)/python -m tests.bench.bench_harm

vision-bases: .venv/.installed  ## Pretrain a small ResNet and a small ViT on CIFAR-10 images in $$RETAIN_DATA, for medical-imaging
	@test -d "$(RETAIN_DATA)/cifar10_small" || \
	  { echo "RETAIN_DATA names no folder with cifar10_small/: see docs/datasets.md" >&2; exit 1; }
	for architecture in resnet vit; do \
	  $(BIN)/python -m tasks.pretrain "$(RETAIN_DATA)/cifar10_small/images" "$(RETAIN_DATA)/cifar10_small/labels.csv" \
	    data/bases/cifar10-$$architecture --architecture $$architecture || exit 1; done

clean: .venv/.installed  ## Show what old workspaces, checkpoints and experiments could be removed
	@$(BIN)/retain clean --dry-run
