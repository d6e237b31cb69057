# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What all rooms count in. Stamps are whole nanoseconds, memory is told in MiB."""

NS = 10**9  # nanoseconds of a second
MIB = 2**20  # bytes of a MiB
