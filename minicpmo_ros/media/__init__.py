# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Signals in: log-mel, PCM, resampling, image geometry, files."""
