# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Clips that nano was not trained on, by other code than its training: other drawing, sounds,
voices and speeds. Only the world's words and the wording of questions are shared.
"""
