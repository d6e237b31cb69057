# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Verbs about a running robot, for `minicpmo VERB` and for `ros2 minicpmo VERB`."""
