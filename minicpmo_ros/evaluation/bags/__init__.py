# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Recordings in: bags, the clips in them, and videos made into bags."""
