# `make demo` and `make test` are the main commands. Both set up .venv with the versions of constraints.txt.

PYTHON ?= python3.11
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
# A machine with a GPU may have no network: without .venv, its own Python and packages are used.
GPU_PYTHON ?= $(if $(wildcard $(BIN)/python),$(BIN)/python,python3)
DEMO := build/demo

.PHONY: help demo test test-slow test-gpu lint bench reference docs evidence evidence-tables evidence-search evidence-front evidence-imported evidence-kills evidence-stops evidence-limits faults clean

help:
	@echo "make demo             Train, search, export and bench on the digits of scikit-learn (minutes)."
	@echo "make test             Run the tests."
	@echo "make test-slow        Run the slow tests: killed trainings and searches, several processes (minutes)."
	@echo "make test-gpu         Run everything that needs a GPU and write docs/GPU_RUNS.md (at most eight minutes)."
	@echo "                      STAND_IN=1 tries the same steps on the CPU."
	@echo "make lint             Run ruff, mypy and the check of the package layers."
	@echo "make bench            Print the speed table with ratios to timm's DeiT-T."
	@echo "make reference        Write the pages of docs/reference/ from the code (seconds)."
	@echo "make docs             Build the site of README.md and docs/ in build/site/ and check its links (seconds)."
	@echo "make clean            Remove build and cache folders."
	@echo "make evidence         Train the missing trainings of the evidence plan (hours; it can be stopped and continued)."
	@echo "make evidence-tables  Draw the tables and figures of docs/EVIDENCE.md from the finished trainings (a second)."
	@echo "make evidence-search  Train micro on Fashion-MNIST, search it and compare with random subnets (a quarter of an hour)."
	@echo "make evidence-front   Train micro and timm models on Fashion-MNIST, and draw docs/evidence/front.svg (one to two hours; it can be stopped;"
	@echo "                      ARGUMENTS=\"--data digits\" takes a quarter of an hour)."
	@echo "make evidence-imported Train, import and shrink a ViT of timm, beside Torch-Pruning (hours; it can be stopped and continued)."
	@echo "make evidence-kills   Kill a training 40 times at random moments and continue it each time (minutes)."
	@echo "make evidence-stops   Stop trainings 120 times by Ctrl-C and SIGTERM and continue them (half an hour or more)."
	@echo "make faults           Kill commands, fill their disk, start them twice, give them bad files, and flood a server (ten minutes;"
	@echo "                      ALL=1 does everything that docs/RELIABILITY.md counts, in hours)."
	@echo "make evidence-limits  Run 20 searches under latency limits on this machine; RUN names a run's folder (ten minutes)."

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
	# One process per core with one thread each: waiting OpenMP threads spin, which is slow on a busy machine.
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not gpu and not slow" -n auto --dist worksteal

test-slow: $(VENV)/.installed
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "slow and not gpu" -n auto --dist worksteal

test-gpu:
	$(GPU_PYTHON) -m tests.gpu $(if $(STAND_IN),--stand-in) $(ARGUMENTS)

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	# export/ and profiles/ are beside growtas/ but are installed inside it. This copy shows them to mypy and import-linter there.
	rm -rf build/typed
	mkdir -p build/typed
	cp -r growtas build/typed/growtas
	cp -r export profiles build/typed/growtas/
	cd build/typed && $(BIN)/mypy --config-file ../../pyproject.toml
	cd build/typed && $(BIN)/lint-imports --no-logo --no-cache ../../pyproject.toml

bench: $(VENV)/.installed
	$(BIN)/python -m tests.benchmarks

reference: $(VENV)/.installed
	$(BIN)/python -m tests.docs

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -q -c constraints.txt -e ".[docs]"
	touch $@

docs: $(VENV)/.docs
	$(BIN)/python -m mkdocs build --strict

evidence: $(VENV)/.installed
	nice -n 19 $(BIN)/python -m tests.evidence $(ARGUMENTS)

evidence-tables: $(VENV)/.installed
	$(BIN)/python -m tests.evidence.tables

evidence-search: $(VENV)/.installed
	$(BIN)/python -m tests.evidence.search_gain $(ARGUMENTS)

evidence-front: $(VENV)/.installed
	$(BIN)/python -m tests.evidence.front $(ARGUMENTS)

evidence-imported: $(VENV)/.installed
	$(BIN)/python -m pip install --disable-pip-version-check --progress-bar off -q --no-deps torch-pruning
	$(BIN)/python -m tests.evidence.imported build/imported $(ARGUMENTS)

evidence-kills: $(VENV)/.installed
	rm -rf build/kills
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.evidence.kills build/kills --kills 40 --options '{"ema_decay": 0.99, "mixup": 0.2, "drop_path": 0.1}'

evidence-stops: $(VENV)/.installed
	rm -rf build/stops
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.evidence.stops build/stops --ema 0.99 --set mixup=0.2 --set drop_path=0.1

evidence-limits: $(VENV)/.installed
	$(BIN)/python -m tests.evidence.latency_limits $(RUN) $(ARGUMENTS)

# The full disks are file systems in memory, which only root can mount; without root they are left out.
faults: $(VENV)/.installed
	rm -rf build/faults
	$(BIN)/python -m tests.evidence.faults build/faults --twice $(if $(ALL),--kills 28 --disk 24 --pairs 20,--kills 3 --disk 3 --pairs 2)
	$(BIN)/python -m tests.evidence.bad_files $(if $(ALL),,--sample)
	$(BIN)/python -m tests.evidence.soak $(if $(ALL),,--sample)

clean:
	rm -rf build .pytest_cache .mypy_cache .ruff_cache .hypothesis
