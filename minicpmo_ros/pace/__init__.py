# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""How much is seen of a second where the machine is too slow to see all of it."""
