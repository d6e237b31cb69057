# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Model files of any size with random weights, for tests and benchmarks."""
