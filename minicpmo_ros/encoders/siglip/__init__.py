# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""SigLIP and the resampler: an image to embeddings of the language model."""
