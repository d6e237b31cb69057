# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Vocabulary, prompt layout, llama.cpp context, sampling."""
