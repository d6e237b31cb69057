# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What all nodes are made of: lifecycle, parameters, topics, diagnostics, time, errors."""
