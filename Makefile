# Two commands: `make demo` and `make test`. Both set up .venv themselves, with the versions of constraints.txt.

PYTHON ?= python3.11
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
# A machine with a GPU may have no network: its own Python serves, with the packages that it has.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,python3)
DEMO := build/demo

.PHONY: help demo test test-slow test-gpu lint bench evidence evidence-tables evidence-search evidence-front evidence-kills evidence-stops evidence-limits clean

help:
	@echo "make demo      train, search, export and bench on embedded images (minutes)"
	@echo "make test      the test suite"
	@echo "make test-slow the tests that take minutes: killed trainings and searches, several processes"
	@echo "make lint      ruff, mypy, and the layers of the packages"
	@echo "make bench     the speed table, as ratios against timm's DeiT-T"
	@echo "make evidence  train what is missing of the evidence plan, and append to docs/evidence/trainings.jsonl (hours; can be stopped)"
	@echo "make evidence-tables   draw the tables and figures of docs/EVIDENCE.md from that ledger (a second)"
	@echo "make evidence-search   train micro on Fashion-MNIST, search it, and compare with random subnets (a quarter of an hour)"
	@echo "make evidence-front    found subnets beside timm models: trains, searches, measures, and draws docs/evidence/front.svg (one to two hours; can be stopped; ARGUMENTS=\"--data digits\": a quarter of an hour)"
	@echo "make evidence-kills    a training killed 40 times at random moments, and continued (minutes)"
	@echo "make evidence-stops    trainings stopped 120 times by Ctrl-C and SIGTERM, and continued (half an hour and more)"
	@echo "make evidence-limits   20 searches under latency limits on this machine: RUN=a trained run's folder (ten minutes)"
	@echo "make test-gpu  all that needs a GPU, in eight minutes at most; writes docs/GPU_RUNS.md; with STAND_IN=1 on the CPU, to try it"

$(VENV)/.installed: pyproject.toml constraints.txt growtas/nn/evaluation/_kernels.c growtas/nn/evaluation/_kernels.inc
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -q -c constraints.txt -e '.[dev,trt-rtx,openvino]'
	touch $@

demo: $(VENV)/.installed
	rm -rf $(DEMO)
	mkdir -p $(DEMO)
	cd $(DEMO) && $(BIN)/growtas train
	cd $(DEMO) && $(BIN)/growtas search --device a10 --max-latency 5ms
	cd $(DEMO) && $(BIN)/growtas export --format trt
	cd $(DEMO) && $(BIN)/growtas bench
	@echo "Made in $(DEMO):"
	@cd $(DEMO) && find runs -type f | sort

test: $(VENV)/.installed
	# A process a core with one thread each: OpenMP's threads spin when they wait for each other, which costs a busy machine dearly.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not gpu and not slow" -n auto --dist worksteal

test-slow: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slow and not gpu" -n auto --dist worksteal

test-gpu:
	$(GPU_PYTHON) -m tests.gpu $(if $(STAND_IN),--stand-in) $(ARGUMENTS)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	# export/ and profiles/ live beside growtas/ and are installed inside it: mypy and import-linter get to see them there.
	rm -rf build/typed
	mkdir -p build/typed
	cp -r growtas build/typed/growtas
	cp -r export profiles build/typed/growtas/
	cd build/typed && $(BIN)/mypy --config-file ../../pyproject.toml
	cd build/typed && $(BIN)/lint-imports --no-logo --no-cache ../../pyproject.toml

bench: $(VENV)/.installed
	$(BIN)/python -m tests.benchmarks

evidence: $(VENV)/.installed
	nice -n 19 $(BIN)/python -m tests.evidence $(ARGUMENTS)

evidence-tables: $(VENV)/.installed
	$(BIN)/python -m tests.evidence.tables

evidence-search: $(VENV)/.installed
	$(BIN)/python -m tests.evidence.search_gain $(ARGUMENTS)

evidence-front: $(VENV)/.installed
	$(BIN)/python -m tests.evidence.front $(ARGUMENTS)

evidence-kills: $(VENV)/.installed
	rm -rf build/kills
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.evidence.kills build/kills --kills 40 --options '{"ema_decay": 0.99, "mixup": 0.2, "drop_path": 0.1}'

evidence-stops: $(VENV)/.installed
	rm -rf build/stops
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.evidence.stops build/stops --ema 0.99 --set mixup=0.2 --set drop_path=0.1

evidence-limits: $(VENV)/.installed
	$(BIN)/python -m tests.evidence.latency_limits $(RUN) $(ARGUMENTS)

clean:
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis
