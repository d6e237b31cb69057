# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Images in: raw and compressed encodings to RGB, and how they are cut into tiles."""
