# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""How the embedded model `nano` is made. Not installed; needs
environment/requirements-training.txt.
"""
