# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Model files in fewer bits, by rules or by measured importance."""
