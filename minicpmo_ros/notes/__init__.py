# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Notes: what was seen and heard, kept after it has left the window; see the package."""
