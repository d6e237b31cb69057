# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""How much memory a configuration takes, what to lower, and the guard of a running robot."""
