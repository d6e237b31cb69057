# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""From Hugging Face checkpoints to the GGUF files of a model directory."""
