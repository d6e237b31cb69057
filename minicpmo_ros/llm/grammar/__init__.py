# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Answers that follow a GBNF grammar: parser, recogniser, and the mask over the vocabulary."""
