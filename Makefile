# Everything a newcomer types. `make quickstart` and `make test` need Python 3.11+ and a package index.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# In the order of tests/conftest.py. Three processes for two cores: many tests wait, for processes that they start or kill.
PARALLEL := -n 3 --dist loadfile --no-loadscope-reorder
VLLM_TESTS := $(addprefix tests/test_,engine_vllm.py vllm_policy.py vllm_server.py vllm_replicas.py)

# Every process that a test starts would compile our sources anew, and every test process the tests.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: gpu quickstart test test-all check format models bench docs clean

quickstart: $(READY)
	$(BIN)/python -m distill run --pipeline configs/quickstart.yaml

test: $(READY)
	$(BIN)/python -m pytest $(PARALLEL)

test-all: $(READY)
	.ci/install-extras
	DISTILL_ENGINE_KILLS=5 $(BIN)/python -m pytest $(PARALLEL) $(LESS)
	if [ -x $(VENV)-vllm/bin/vllm ]; then $(VENV)-vllm/bin/python -m pytest $(VLLM_TESTS); fi

# On a machine with a GPU and no network, with the packages that are there (nothing is installed): those of PYTHON where
# it is given, else of the environment if it was made. The tests that need CUDA, then ours against TRL. What could not
# be run is said, and why (without TRL ours alone is measured); it fails where something that was run did.
gpu: HERE = $(if $(filter file,$(origin PYTHON)),$(or $(wildcard $(BIN)/python),$(PYTHON)),$(PYTHON))
gpu:
	@failed=0; \
	$(HERE) -m pytest -p no:xdist -m gpu -r sf $$(grep -rl --include='*.py' 'mark.gpu' tests) || failed=1; \
	for script in benchmarks/sft.py benchmarks/grpo.py; do \
		PYTHONPATH="$(CURDIR)$${PYTHONPATH:+:$$PYTHONPATH}" $(HERE) $$script --quick --device cuda; code=$$?; \
		[ $$code = 0 ] || echo "not run, or not to its end: $$script (exit code $$code; why is said above)"; \
		[ $$code = 0 ] || [ $$code = 2 ] || failed=1; \
	done; \
	echo "not run: benchmarks/generate.py and benchmarks/vllm_engine.py, which have no form for a GPU"; \
	exit $$failed

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Rebuilds the models that are shipped in distill/models/ (see configs/build_quickstart_models.yaml).
models: $(READY)
	$(BIN)/python -m distill run --pipeline configs/build_quickstart_models.yaml
	rm -rf distill/models/teacher distill/models/student-base
	cp -RL runs/models/teacher/model distill/models/teacher
	cp -RL runs/models/student-base/model distill/models/student-base

# Ours and the named peer in one run, in CPU-seconds; the last line of each is one JSON object.
bench: $(READY)
	for script in benchmarks/[!_]*.py; do $(BIN)/python $$script --quick; done

docs: $(READY)
	$(BIN)/python docs/reference.py

clean:
	rm -rf runs build dist *.egg-info

# The environment is made anew when pyproject.toml changes. Without a GPU it gets the CPU build of torch.
$(READY): pyproject.toml .ci/install
	PYTHON=$(PYTHON) .ci/install $(VENV)
	touch $@
