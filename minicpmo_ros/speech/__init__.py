# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The robot's own voice: text to sentences, sentences to sound, and who listens meanwhile."""
