# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The language model: its file, vocabulary, prompt, context and sampling, on llama.cpp."""
