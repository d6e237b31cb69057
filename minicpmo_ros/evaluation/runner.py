# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Questions answered by the engine's own parts without ROS, as fast as they go.

A clip goes the way live input goes: Seeing and Hearing, UnitAssembler, Session. Pictures are
encoded once for all windows that begin together; sound for every window, at whose end nothing is
heard of what follows, as nothing is in the graph. The questions about one window share all that,
each on its own fork. Answers are greedy; on a CPU the same directory and the same questions give
the same bytes, whatever else is asked.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from minicpmo_ros.encoders.siglip import VisionEncoder
from minicpmo_ros.encoders.whisper import AudioEncoder
from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.answers import AUDIO, INPUTS, AnswerSet, precision_name
from minicpmo_ros.evaluation.clips import Clip, Shot, read_clip
from minicpmo_ros.evaluation.questions import QuestionSet, by_window
from minicpmo_ros.ggml.runtime import Backend
from minicpmo_ros.language.context import ContextOptions
from minicpmo_ros.language.model import ModelOptions
from minicpmo_ros.language.prompt import LAYOUTS
from minicpmo_ros.live.hearing import Hearing
from minicpmo_ros.live.pacing import Instant
from minicpmo_ros.live.question import Answer, Finish, Question
from minicpmo_ros.live.seconds import SecondSplitter
from minicpmo_ros.live.seeing import UNCHANGED_THRESHOLD, Seeing
from minicpmo_ros.live.session import Session, SessionOptions
from minicpmo_ros.live.status import Status
from minicpmo_ros.live.units import UnitAssembler
from minicpmo_ros.media.log_mel import log_mel
from minicpmo_ros.models.directory import ModelDirectory

GREY = 128
FRAMES = 100  # of the spectrum, a second
LEFT, RIGHT = 2, 1  # frames beside a second that its encoding reaches


@dataclass(frozen=True)
class Variant:
    """How the clips are presented."""

    input: str = 'all'  # no_picture: pictures are grey; no_sound: samples are zero
    audio: str = 'streaming'  # offline: one spectrum of the whole window, with one maximum

    def __post_init__(self):
        """Check the two names."""
        for name, allowed in (('input', INPUTS), ('audio', AUDIO)):
            if getattr(self, name) not in allowed:
                raise InputError(
                    f'{name} is {getattr(self, name)!r}; allowed are {", ".join(allowed)}.'
                )


@dataclass(frozen=True)
class CoreOptions:
    """As the live nodes' parameters of these names, with their defaults."""

    device: str = 'auto'
    threads: int = 2
    prompt: str = 'en'
    n_ctx: int = 4096
    n_ubatch: int = 128
    kv_type: str = 'f16'
    repack: bool = False
    window_policy: str = 'recent'
    max_tokens: int = 16
    max_question_tokens: int = 384
    max_tiles: int = 1
    unchanged_threshold: float = UNCHANGED_THRESHOLD


class Core:
    """A loaded model: clips to units, units and questions to answers. One thread uses it.

    strict: refuse clips of which a second is lost, windows that lack one, and questions that
    cannot be asked; else the last are Answers with the error.
    on_product: sees what every weight is multiplied with, as ContextOptions has it.
    """

    def __init__(
        self,
        model: ModelDirectory,
        options: CoreOptions | None = None,
        strict: bool = True,
        on_product: Callable | None = None,
    ):
        self.model, self.options, self.strict = model, options or CoreOptions(), strict
        o = self.options
        layout = LAYOUTS.get(f'{model.family}/{o.prompt}')
        if layout is None:
            raise InputError(
                f'There is no prompt {o.prompt!r} for {model.family}; known are '
                f'{", ".join(LAYOUTS)}.'
            )
        self._backend = Backend(o.device, threads=o.threads)
        self._backend.on_product = on_product
        try:
            self.vision = VisionEncoder.load(model.vision_path, self._backend, o.max_tiles)
            self.audio = AudioEncoder.load(model.audio_path, self._backend)
            on_cpu = o.device == 'cpu'
            self.session = Session.load(
                model.llm_path,
                layout,
                ModelOptions(0 if on_cpu else -1, repack=o.repack),
                ContextOptions(
                    o.n_ctx,
                    o.n_ubatch,
                    kv_type=o.kv_type,
                    threads=o.threads,
                    offload_kv=not on_cpu,
                    on_product=on_product,
                ),
                SessionOptions(
                    max_tokens=o.max_tokens,
                    max_question_tokens=o.max_question_tokens,
                    window_policy=o.window_policy,
                ),
            )
        except BaseException:
            self._backend.close()
            raise

    @property
    def is_cpu(self) -> bool:
        """Whether the encoders run on the CPU."""
        return self._backend.is_cpu

    def close(self) -> None:
        """Free everything."""
        self.session.close()
        self._backend.close()

    def see(self, clip: Clip, grey: bool = False) -> list:
        """Give the SeenSeconds of a clip."""
        seeing = Seeing(self.vision, self.options.max_tiles, self.options.unchanged_threshold)
        seen, last = [], None
        for shot in clip.pictures:
            seen += seeing.advance(shot.stamp_ns)
            seeing.offer(shot.stamp_ns, lambda shot=shot: _shown(shot, grey))
            last = shot.stamp_ns
        return self._checked(seen + (seeing.close(last // 10**9) if last is not None else []))

    def hear(self, clip: Clip, offline: bool = False, silent: bool = False) -> list:
        """Give (second, rows or None) of a clip's sound."""
        sound = [
            (stamp_ns, samples * 0 if silent else samples) for stamp_ns, samples in clip.sound
        ]
        if offline:
            return self._hear_offline(sound)
        hearing = Hearing(self.audio)
        heard = [second for chunk in sound for second in hearing.push(*chunk)] + hearing.flush()
        return [(second.second, second.rows) for second in self._checked(heard)]

    def _checked(self, seconds: list) -> list:
        lost = [second for second in seconds if second.status == Status.LOST]
        if lost and self.strict:
            raise InputError(f'The second {lost[0].second} was lost: {lost[0].reason}')
        return seconds

    def _hear_offline(self, sound: list) -> list:
        """Encode a whole clip's spectrum under the chunk-causal mask, which the stream is.

        As the published offline path does, what is longer than the encoder's positions is cut into
        pieces, each with a spectrum of its own and positions from 0.
        """
        splitter = SecondSplitter(look_ahead_samples=0)
        cut = [second for chunk in sound for second in splitter.push(*chunk)] + splitter.flush()
        if any(second.restarted for second in cut[1:]):
            raise InputError('A clip whose sound has a long gap cannot be heard offline.')
        longest = self.audio.stream().max_seconds
        pieces = (cut[begin : begin + longest] for begin in range(0, len(cut), longest))
        return [heard for piece in pieces for heard in self._hear_piece(piece)]

    def _hear_piece(self, cut: list) -> list:
        stream = self.audio.stream()
        mel = log_mel(np.concatenate([second.samples for second in cut]))  # (100 n, 80)
        mel = np.pad(mel, ((LEFT, RIGHT), (0, 0)))  # as the encoder's convolutions pad
        return [
            (
                second.second,
                stream.step(mel[FRAMES * i : FRAMES * (i + 1) + LEFT + RIGHT]).astype(np.float16),
            )
            for i, second in enumerate(cut)
        ]

    def answer(self, units: list, questions: list) -> list:
        """Read units into an empty window and give a live Answer to each question."""
        session = self.session
        session.reset()
        for unit in units:
            session.append(unit)
        if session.window.seconds != [unit.second for unit in units]:
            raise InputError(
                f'A window of {len(units)} s does not fit into {self.options.n_ctx} '
                'positions. Raise n_ctx.'
            )
        return [self._answer(question) for question in questions]

    def _answer(self, question) -> Answer:
        try:
            answering = self.session.ask(Question(question.text, question.choices))
        except InputError as error:
            if self.strict:
                raise
            return Answer(question.text, '', Finish.ERROR, error)
        try:
            while answering.answer is None:
                answering.step()
        finally:
            answering.end(Finish.ERROR)  # does nothing where it has ended
        return answering.answer


class _Encoded:
    """A clip's windows that begin at start_s; each stream is encoded when first asked for.

    A picture's rows depend on the pictures before it alone and are shared by all windows. A
    second's sound is encoded with a moment of what follows it, and offline with the maximum of all
    that is heard: every window hears its own seconds only.
    """

    def __init__(self, core: Core, clip: Clip, start_s: int):
        self._core, self._clip, self._start_s = core, clip, start_s
        self._seen, self._heard, self._end_s = {}, {}, None  # the last two of one window

    def units(self, variant: Variant, end_s: int) -> list:
        """Give the units of the window that ends there; variants of one window come together."""
        if end_s != self._end_s:
            self._heard, self._end_s = {}, end_s
        grey = variant.input == 'no_picture'
        if grey not in self._seen:
            self._seen[grey] = self._core.see(self._clip, grey)
        how = variant.audio == 'offline', variant.input == 'no_sound'
        if how not in self._heard:
            self._heard[how] = self._core.hear(self._clip.between(self._start_s, end_s), *how)
        seen = [second for second in self._seen[grey] if second.second < end_s]
        return assemble(seen, self._heard[how])


def assemble(seen: list, heard: list) -> list:
    """Pair SeenSeconds and (second, rows) of sound into Units, in order."""
    assembler = UnitAssembler(max_pending=len(seen) + len(heard) + 1)
    for picture in seen:
        assembler.add_picture(
            picture.second, picture.rows, (picture.tiles_wide, picture.tiles_high), Instant(0.0)
        )
    for second, rows in heard:
        assembler.add_sound(second, rows, Instant(0.0))
    units = assembler.due(Instant(math.inf))
    if assembler.jumps or assembler.late:
        raise InputError('The stamps of the clip go back; one that was recorded once is needed.')
    return units


def answer_clip(core: Core, clip: Clip, questions: list, variants: list):
    """Give (variant, question, Answer) for questions about one clip, window by window.

    Windows come in the order of their first question.
    """
    windows = by_window(questions, clip.first_s)
    ends, encoded = {}, {}  # by start_s: the ends of its windows that are to come; an _Encoded
    for start_s, end_s in windows:
        ends.setdefault(start_s, []).append(end_s)
    for (start_s, end_s), asked in windows.items():
        if start_s not in encoded:
            encoded[start_s] = _Encoded(core, clip.between(start_s, max(ends[start_s])), start_s)
        for variant in variants:
            units = encoded[start_s].units(variant, end_s)
            answers = core.answer(_of_window(units, start_s, end_s, core.strict), asked)
            yield from ((variant, q, answer) for q, answer in zip(asked, answers))
        ends[start_s].remove(end_s)
        if not ends[start_s]:
            del encoded[start_s]


def answer_all(
    core: Core,
    questions: QuestionSet,
    variants: list,
    on_progress: Callable[[int, int], None] | None = None,
) -> list:
    """Answer every question once in every variant; give an AnswerSet a variant.

    on_progress(done, total) is called after each clip, in questions. Raises InputError, naming
    the clip, where one is damaged: the score would mean nothing.
    """
    texts = {variant: {} for variant in variants}
    done, total = 0, len(questions.questions) * len(variants)
    for name, asked in questions.by_clip().items():
        path = questions.path_of(name)
        try:
            clip = read_clip(path)
            if clip.losses:
                raise InputError(' '.join(clip.losses))
            for variant, question, answer in answer_clip(core, clip, asked, variants):
                texts[variant][question.id] = answer.text
        except InputError as error:
            raise InputError(f'{path}: {error}') from error
        done += len(asked) * len(variants)
        if on_progress is not None:
            on_progress(done, total)
    precision = precision_name(core.model.precision)
    return [
        AnswerSet(
            {q.id: texts[variant][q.id] for q in questions.questions},
            'core',
            precision,
            variant.audio,
            variant.input,
            core.model.model_id,
        )
        for variant in variants
    ]


def _of_window(units: list, start_s: int, end_s: int, strict: bool) -> list:
    inside = [unit for unit in units if start_s <= unit.second < end_s]
    if not inside or (strict and len(inside) != end_s - start_s):
        raise InputError(
            f'{len(inside)} seconds of the window [{start_s}, {end_s}) have a '
            'picture or a sound. Correct start_s and end_s.'
        )
    return inside


def _shown(shot: Shot, grey: bool) -> np.ndarray:
    picture = shot.rgb()  # (H, W, 3)
    return np.full_like(picture, GREY) if grey else picture
