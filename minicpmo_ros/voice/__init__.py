# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Spoken questions: when somebody has spoken, and what a question about it has to wait for."""
