# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Questions about recordings, asked through the live graph; and the demo."""
