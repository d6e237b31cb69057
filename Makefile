# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0
#
# Every target sets up what it needs, and nothing twice. Where no ROS 2 distribution is
# sourced, ROS 2 itself comes as wheels into .venv. CMAKE_ARGS goes to llama.cpp:
#   make build CMAKE_ARGS="-DGGML_CUDA=on"
SHELL := /bin/bash
.DEFAULT_GOAL := help
PYTHON ?= python3
export PYTHON CMAKE_ARGS

installed := $(shell find minicpmo_ros msg srv action launch config demo models \
  -type f -not -name '*.pyc' 2>/dev/null) CMakeLists.txt package.xml setup.py setup.cfg
in_env := source environment/env.sh &&

.PHONY: help build live test lint clean setup setup-test

help: ## show this
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup:
	@environment/setup.sh

setup-test:
	@environment/setup.sh test

build/installed: $(installed) environment/build.sh | setup
	@environment/build.sh
	@touch $@

build: setup build/installed ## set up the machine, build the interfaces, install the package

live: build ## play the demo clip through the live graph, ask, print the answers and a table
	@$(in_env) python -m minicpmo_ros.nodes.demo

lint: setup-test ## style
	@$(in_env) ruff check . && ruff format --check --quiet .

test: setup-test build/installed lint ## everything that must hold, in under 15 minutes
	@$(in_env) python -m pytest

clean: ## remove what was built here; compiled llama.cpp stays in the user's cache
	rm -rf .venv build install log
