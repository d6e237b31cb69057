# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Make log_mel.npz: features by transformers' WhisperFeatureExtractor, the independent oracle.

pip install -r environment/requirements-golden.txt && python test/golden/make_log_mel.py
"""

from pathlib import Path

import numpy as np
from transformers import WhisperFeatureExtractor

RATE_HZ = 16000


def clip() -> np.ndarray:
    """Give 2.35 s: a siren that fades to digital silence, then a faint hiss; int16."""
    rng = np.random.default_rng(7)
    t = np.arange(int(2.35 * RATE_HZ)) / RATE_HZ
    siren = np.sin(2 * np.pi * (600 * t + 40 * np.sin(9 * t))) * np.exp(-4 * t)
    hiss = rng.normal(0, 1e-3, t.size) * (t > 1.6)
    return np.round((0.7 * siren * (t < 1.2) + hiss) * 32767).astype(np.int16)


def main():
    """Write the clip and its features beside this script."""
    extractor = WhisperFeatureExtractor(feature_size=80)
    pcm = clip()
    samples = pcm.astype(np.float32) / 32768

    def features(part, **padding):
        out = extractor(part, sampling_rate=RATE_HZ, return_tensors='np', **padding)
        return out['input_features'][0].T.astype(np.float32)

    np.savez_compressed(
        Path(__file__).with_name('log_mel.npz'),
        pcm=pcm,
        whole=features(samples, padding=False),  # (235, 80)
        second=features(samples[8000:24000])[:100],  # (100, 80), zero-padded to 30 s
        filter_bank=extractor.mel_filters.T.astype(np.float32),
    )  # (80, 201)


if __name__ == '__main__':
    main()
