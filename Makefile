# `make help` lists what there is. Everything is installed into .venv; what is there already is not installed again.

PYTHON ?= python3
PRECISION ?= int8
PORT ?= 8000
ARTIFACT ?= artifacts/demo-$(PRECISION)
CHECKPOINT ?=
HEADS ?=
NAME ?= $(notdir $(patsubst %/,%,$(CHECKPOINT)))-$(PRECISION)
OPTIONS ?=

PY := .venv/bin/python
GPU_PY := .venv-gpu/bin/python
GPU_CHECKPOINT := artifacts/.gpu/vicuna-7b
GPU_ARTIFACT := artifacts/vicuna-7b-shape-fp16
INSTALL := $(PY) -m pip install --constraint constraints.txt --editable
DEMO := export/demo/model
DEMO_HEADS := $(DEMO)/medusa_lm_head.safetensors
DEMO_FROM := $(wildcard export/*.py $(DEMO)/*) runtime/manifest.py
DEMO_ARTIFACT := $(patsubst %,%/manifest.json,$(filter artifacts/demo-%,$(patsubst %/,%,$(ARTIFACT))))
LOAD_PROMPTS := --prompts export/demo/data.jsonl --template "What does {name} do?" --without heldout
DEMO_PROMPTS := $(LOAD_PROMPTS) --requests 128
PACKAGES := pyproject.toml constraints.txt

.DELETE_ON_ERROR:
.DEFAULT_GOAL := help
.PHONY: help serve native export bench bench-load bench-chat bench-guidellm bench-peers gpu-check gpu-bench test test-full lint format demo-model

help: ## list the targets and their variables
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@echo
	@echo "  make serve      ARTIFACT=artifacts/NAME PORT=8000 OPTIONS=\"--rows 16 ...\"  (all options: python -m service --help)"
	@echo "  make export     CHECKPOINT=PATH|OWNER/NAME HEADS=PATH|OWNER/NAME PRECISION=fp32|int8|int8-block32|int4 NAME=NAME"
	@echo "                  OPTIONS=\"--form padded\" PRECISION=fp32|fp16|bf16|int4 for GPUs"
	@echo "  make bench      ARTIFACT=artifacts/NAME OPTIONS=\"--max-tokens 64 ...\""

serve: native $(DEMO_ARTIFACT) ## serve the demo model, or ARTIFACT, on 127.0.0.1:PORT
	@exec $(PY) -m service --artifact $(ARTIFACT) --port $(PORT) $(OPTIONS)

native: .venv/.serve ## build the native operators, if there are CMake and a C++ compiler; stock ones serve otherwise
	@$(PY) -m runtime.native || true # it has said why not

# artifacts/demo-% is a symlink that the export switches at its end: make sees the new manifest's time, or the old one's.
artifacts/demo-%/manifest.json: $(DEMO_FROM) | .venv/.serve
	$(PY) -m export $(DEMO) --heads $(DEMO_HEADS) --precision $* --out artifacts/demo-$*

export: $(if $(CHECKPOINT),.venv/.serve) ## turn CHECKPOINT (and HEADS) into artifacts/NAME
	@test -n "$(CHECKPOINT)" || { echo "make export: CHECKPOINT is missing: make export CHECKPOINT=PATH|OWNER/NAME [HEADS=PATH|OWNER/NAME] [PRECISION=$(PRECISION)] [NAME=NAME]" >&2; exit 2; }
	@needs=$$($(PY) -m export.needs $(CHECKPOINT) $(HEADS) $(filter --offline,$(OPTIONS))) && \
	    for need in $$needs; do $(MAKE) --no-print-directory .venv/.$$need || exit; done
	$(PY) -m export $(CHECKPOINT) $(if $(HEADS),--heads $(HEADS)) --precision $(PRECISION) $(OPTIONS) --out artifacts/$(NAME)

bench: .venv/.bench native $(DEMO_ARTIFACT) ## measure ARTIFACT, plain against speculative
	$(PY) -m runtime.bench decode --artifact $(ARTIFACT) $(if $(DEMO_ARTIFACT),$(DEMO_PROMPTS)) \
	    --speculation off,4,6,8,16,auto --concurrency 1,8 $(OPTIONS)

bench-load: .venv/.bench native $(DEMO_ARTIFACT) ## measure ARTIFACT behind HTTP, under load
	$(PY) -m runtime.bench load --artifact $(ARTIFACT) $(if $(DEMO_ARTIFACT),$(LOAD_PROMPTS)) $(OPTIONS)

bench-chat: .venv/.bench native $(DEMO_ARTIFACT) ## measure the first token of a chat's turns, with and without prefix reuse
	$(PY) -m runtime.bench chat --artifact $(ARTIFACT) $(if $(DEMO_ARTIFACT),$(LOAD_PROMPTS)) $(OPTIONS)

bench-guidellm: .venv/.bench native $(DEMO_ARTIFACT) ## run guidellm, installed into .peers, against the server
	$(PY) -m runtime.bench guidellm --artifact $(ARTIFACT) $(OPTIONS)

bench-peers: .venv/.bench native $(foreach precision,fp32 int8 int4,artifacts/demo-$(precision)/manifest.json) ## measure Gorgon against its peers, each installed into .peers
	$(PY) -m runtime.bench peers $(OPTIONS)

# In an environment of its own: onnxruntime-gpu and onnxruntime overwrite each other's files.
gpu-check: .venv-gpu/.made ## on a machine with a GPU: the parity tests on CUDA, fp32 and fp16
	$(GPU_PY) -m pytest --provider cuda tests/parity tests/unit/test_providers.py -k "padded or test_providers" $(OPTIONS)

gpu-bench: .venv-gpu/.made ## on a machine with a GPU: steps of 7B's shape in fp16 against the memory's speed
	@$(GPU_PY) -m runtime.bench gpu --ready
	test -f $(GPU_ARTIFACT)/manifest.json || { $(GPU_PY) -m export.synthetic vicuna-7b --out $(GPU_CHECKPOINT) && \
	    $(GPU_PY) -m export $(GPU_CHECKPOINT) --form padded --precision fp16 --no-self-test --out $(GPU_ARTIFACT); }
	$(GPU_PY) -m runtime.bench gpu --artifact $(GPU_ARTIFACT) --peer $(GPU_PY) --peer-config $(GPU_CHECKPOINT)/config.json $(OPTIONS)

test: .venv/.test native ## run the tests, minutes
	$(PY) -m pytest -m "not slow"

test-full: .venv/.test native ## run all tests, the long ones too; writes docs/reliability.md
	$(PY) -m pytest

lint: .venv/.test ## check format, style and types
	$(PY) -m ruff format --check .
	$(PY) -m ruff check .
	$(PY) -m mypy

format: .venv/.test ## put the code into the format that lint checks
	$(PY) -m ruff format .
	$(PY) -m ruff check --fix .

demo-model: .venv/.export ## train the demo model again, from data to heads (about 40 minutes on 2 cores; goes on if interrupted)
	$(PY) -m export.demo

.venv/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	    { echo "$(PYTHON) is $$($(PYTHON) --version 2>&1), Gorgon needs 3.11 or later: make PYTHON=python3.12 ..." >&2; exit 2; }
	$(PYTHON) -m venv --clear .venv
	@touch $@

.venv-gpu/.made: $(PACKAGES)
	$(PYTHON) -m venv .venv-gpu
	$(GPU_PY) -m pip install --constraint constraints.txt --editable ".[gpu,export,gguf,bench,test]"
	$(GPU_PY) -m pip install --constraint constraints.txt "onnxruntime-gpu[cuda,cudnn]"
	@touch $@

.venv/.serve: $(PACKAGES) | .venv/.made
	$(INSTALL) ".[serve]"
	@touch $@

.venv/.export .venv/.sentencepiece .venv/.gguf .venv/.bench: .venv/.%: $(PACKAGES) | .venv/.made
	$(INSTALL) ".[serve,$*]"
	@touch $@

.venv/.test: $(PACKAGES) | .venv/.made
	$(INSTALL) ".[serve,export,gguf,bench,otel,test]"
	@touch $@ .venv/.serve .venv/.export .venv/.sentencepiece .venv/.gguf .venv/.bench
