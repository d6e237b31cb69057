# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Node `web`, which serves the page in the browser, and `make web`."""
