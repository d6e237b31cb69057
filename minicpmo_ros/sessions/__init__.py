# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Sessions that survive: the embeddings of the window's seconds in a file; see the package."""
