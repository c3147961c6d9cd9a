# Two commands matter: `make demo` and `make test`. Both start from nothing but Python, a compiler, cmake and git.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMPS := $(VENV)/stamps
SANITIZED := build/sanitized
FUZZED := build/fuzz
CUDA := build/cuda
FUZZ_S ?= 600
CORE_SOURCES := $(shell find csrc -name '*.cpp' -o -name '*.h') CMakeLists.txt pyproject.toml
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.PHONY: help demo compiled check test test-core cuda fuzz chaos fuzz-codecs bench bench-peers clean format docs fuzz-wire

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14

demo: $(STAMPS)/demo compiled ## four device processes learn real digits through a real broker
	$(BIN)/edge-runtime demo $(ARGS)

check: $(STAMPS)/dev ## format, lint, types, import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	git ls-files '*.cpp' '*.h' '*.cu' '*.cuh' | xargs $(BIN)/clang-format --dry-run --Werror

docs: $(STAMPS)/test ## write the tables in docs/ that are made from the code anew
	PYTHONPATH=.:tests $(BIN)/python -m support.pages

fuzz-wire: $(STAMPS)/test ## break messages, blobs, updates and packets for FUZZ_S seconds (600)
	PYTHONPATH=.:tests $(BIN)/python -m fuzz.wire --seconds $(FUZZ_S) $(ARGS)

fuzz-codecs: $(STAMPS)/test ## break updates of every codec for FUZZ_S seconds (600)
	PYTHONPATH=.:tests $(BIN)/python -m fuzz.codecs --seconds $(FUZZ_S)

format: $(STAMPS)/dev ## rewrite Python and C++ in the house format
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	git ls-files '*.cpp' '*.h' '*.cu' '*.cuh' | xargs $(BIN)/clang-format -i

test: $(STAMPS)/test compiled test-core cuda ## C++ tests under sanitizers, then pytest
	@sh tests/ensure-mosquitto.sh
	@if [ -n "$(ARGS)" ]; then $(BIN)/pytest $(ARGS); else sh tests/in-two.sh $(BIN)/pytest; fi

test-core: $(STAMPS)/demo
	$(BIN)/cmake -S . -B $(SANITIZED) -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DCMAKE_BUILD_TYPE=RelWithDebInfo \
	  -DEDGE_TESTS=ON -DEDGE_SANITIZE=ON -DEDGE_PYTHON=OFF > $(STAMPS)/cmake.log || (cat $(STAMPS)/cmake.log; exit 1)
	$(BIN)/cmake --build $(SANITIZED)
	$(BIN)/ctest --test-dir $(SANITIZED) --output-on-failure

cuda: $(STAMPS)/demo ## compile the device kernels for sm_75, sm_87 and sm_90 (left out, saying so, where nvcc is not)
	@if ! command -v nvcc > /dev/null; then echo "cuda: skipped, nvcc is not on the PATH"; else \
	  $(BIN)/cmake -S . -B $(CUDA) -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja -DEDGE_CUDA=ON \
	    -Dpybind11_DIR=$$($(BIN)/python -m pybind11 --cmakedir) -DPython_EXECUTABLE=$(CURDIR)/$(BIN)/python \
	    > $(STAMPS)/cmake-cuda.log || { cat $(STAMPS)/cmake-cuda.log; exit 1; }; \
	  $(BIN)/cmake --build $(CUDA) --target _cuda && cp $(CUDA)/_cuda*.so edge_runtime/; fi

fuzz: $(STAMPS)/test ## break plans and coded streams for FUZZ_S seconds (600) each under libFuzzer and the sanitizers
	clang=$$(sh tests/ensure-clang.sh) && $(BIN)/cmake -S . -B $(FUZZED) -G Ninja -DCMAKE_MAKE_PROGRAM=$(CURDIR)/$(BIN)/ninja \
	  -DCMAKE_BUILD_TYPE=RelWithDebInfo -DCMAKE_CXX_FLAGS_RELWITHDEBINFO='-O1 -gline-tables-only' -DCMAKE_CXX_COMPILER=$$clang -DEDGE_FUZZ=ON \
	  -DEDGE_PYTHON=OFF > $(STAMPS)/cmake-fuzz.log \
	  || (cat $(STAMPS)/cmake-fuzz.log; exit 1)
	$(BIN)/cmake --build $(FUZZED)
	KEPT_PLANS=$(FUZZED)/seeds PYTHONPATH=tests $(BIN)/pytest -q -p support.keep_plans -m 'not slow' tests/engine/test_kernels.py \
	  tests/engine/test_tensor_kernels.py tests/engine/test_map.py tests/engine/test_endurance.py tests/compiler/test_engine_agrees.py
	@mkdir -p $(FUZZED)/corpus
	$(FUZZED)/tests/csrc/fuzz_bytes $(FUZZED)/corpus $(FUZZED)/seeds -max_total_time=$(FUZZ_S) -max_len=65536 -timeout=60 \
	  -rss_limit_mb=4096 -print_final_stats=1 -artifact_prefix=$(FUZZED)/
	for name in gaps rans; do mkdir -p $(FUZZED)/corpus-$$name && $(FUZZED)/tests/csrc/fuzz_$$name $(FUZZED)/corpus-$$name \
	  -max_total_time=$(FUZZ_S) -max_len=4096 -timeout=10 -rss_limit_mb=2048 -print_final_stats=1 -artifact_prefix=$(FUZZED)/ || exit 1; done

SEEDS ?= 20
SECONDS ?= 600
SLOTS ?= 2
chaos: $(STAMPS)/test compiled ## SEEDS jobs (20), SLOTS (2) at a time, on real processes, each disturbed for SECONDS (600)
	PYTHONPATH=tests $(BIN)/python -m chaos --seeds $(SEEDS) --seconds $(SECONDS) --slots $(SLOTS) --save $(ARGS)

bench: $(STAMPS)/test ## ratios against what a user would pick instead; writes tests/bench/results/
	$(BIN)/edge-runtime bench client $(ARGS)

bench-peers: $(BIN)/python ## install what `edge-runtime bench training` and `bench fleet` compare with, into build/peers
	PYTHON=$(CURDIR)/$(BIN)/python sh tests/bench/peers/install.sh

clean: ## remove everything that was built, the virtual environment too
	rm -rf $(VENV) build dist

# What pip does for an installed package: without it, or under PYTHONDONTWRITEBYTECODE, every device process of an
# editable install would compile its modules anew, and its import time would be that of the compiler.
compiled: $(STAMPS)/demo
	@$(BIN)/python -m compileall -q edge_runtime coordinator models

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Edge Runtime needs Python 3.11 or newer; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)

# The build requirements stand in the environment itself, so that the build folder stays valid between runs.
$(STAMPS)/build: $(BIN)/python
	$(PIP) 'scikit-build-core>=0.11' 'pybind11>=3.0' 'cmake>=3.18' ninja
	@mkdir -p $(STAMPS) && touch $@

$(STAMPS)/demo: $(STAMPS)/build $(CORE_SOURCES)
	$(PIP) --no-build-isolation --editable '.[demo]'
	@touch $@

$(STAMPS)/test: $(STAMPS)/demo
	$(PIP) --no-build-isolation --editable '.[demo,test]'
	@touch $@

$(STAMPS)/dev: $(STAMPS)/demo
	$(PIP) --no-build-isolation --editable '.[demo,dev]' hypothesis pytest
	@touch $@
