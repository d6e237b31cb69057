# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""A model directory: three files, their manifest and hashes, and files found elsewhere."""
