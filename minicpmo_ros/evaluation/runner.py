# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Questions answered by the engine's own parts without ROS, as fast as they go.

A clip goes the way live input goes: ImagePipeline and AudioPipeline, UnitAssembler, Session.
Images are encoded once for all windows that begin together; audio for every window, and at its
end nothing of what follows is heard, as in the graph. The questions about one window share all
that, each on its own fork. Answers are greedy; on a CPU the same directory and the same questions
give the same bytes, whatever else is asked.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from heapq import merge
from itertools import groupby

import numpy as np

from minicpmo_ros.config import COMPUTING, EVALUATION, LLM, VISION
from minicpmo_ros.encoders.siglip.encoder import VisionEncoder
from minicpmo_ros.encoders.whisper.encoder import AudioEncoder
from minicpmo_ros.errors import ContextFullError, InputError
from minicpmo_ros.evaluation.answers import AUDIO, INPUTS, AnswerSet, precision_name
from minicpmo_ros.evaluation.bags.clip import Clip
from minicpmo_ros.evaluation.bags.clip_reading import read_clip
from minicpmo_ros.evaluation.looks import NOTHING, InView, ask_scored, image_pipeline, shown
from minicpmo_ros.evaluation.past import answer_window, units_inside
from minicpmo_ros.evaluation.questions import QuestionSet, by_window
from minicpmo_ros.families import find_layout
from minicpmo_ros.ggml.runtime import Backend
from minicpmo_ros.live.question import Answer, Finish, Question
from minicpmo_ros.live.session import Session
from minicpmo_ros.live.session_options import SessionOptions
from minicpmo_ros.llm.context import ContextOptions
from minicpmo_ros.llm.model import ModelOptions
from minicpmo_ros.media.audio.log_mel import log_mel
from minicpmo_ros.media.image.tiling import Crop, check_area
from minicpmo_ros.modelset.directory import ModelDirectory
from minicpmo_ros.streams import Status
from minicpmo_ros.streams.audio import AudioPipeline
from minicpmo_ros.streams.image import ImageSecond
from minicpmo_ros.streams.pairing import Unit, UnitAssembler
from minicpmo_ros.streams.segmenter import SecondSplitter
from minicpmo_ros.streams.time import Instant

STAMPS_GO_BACK = 'The stamps of the clip go back; one that was recorded once is needed.'
FRAMES = 100  # of the spectrum, a second
LEFT, RIGHT = 2, 1  # frames beside a second that its encoding reaches


@dataclass(frozen=True)
class Variant:
    """How the clips are presented."""

    input: str = 'all'  # no_picture: images are grey; no_sound: samples are zero
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
    """As the live nodes' parameters of these names; what differs is config.Evaluation's."""

    device: str = COMPUTING.device
    threads: int = EVALUATION.threads
    prompt: str = LLM.prompt
    speech: str | bool = LLM.speech
    n_ctx: int = LLM.n_ctx
    n_ubatch: int = LLM.n_ubatch
    kv_type: str = LLM.kv_type
    attention: str = LLM.attention
    repack: bool = LLM.repack
    window_policy: str = LLM.window_policy
    still: bool = LLM.still
    max_tokens: int = EVALUATION.max_tokens
    max_question_tokens: int = LLM.max_question_tokens
    max_tiles: int = VISION.max_tiles
    area: float = VISION.area
    crop: str = VISION.crop
    sharp_every: int = VISION.sharp_every
    look_tiles: int = VISION.look_tiles
    tile_rule: str = VISION.tile_rule
    tile_alpha: float = VISION.tile_alpha
    unchanged_threshold: float = VISION.unchanged_threshold
    max_forks: int = 1  # questions that are read at once
    rpc_servers: str = COMPUTING.rpc_servers

    def __post_init__(self):
        """Refuse what no question can be asked with, before one is."""
        Crop.parse(self.crop)
        check_area(self.area)


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
        self.memory = None  # a NoteMemory, for questions about the past
        o = self.options
        layout = find_layout(model.family, o.prompt)
        self._backend = Backend(o.device, o.threads, o.rpc_servers)
        self._backend.on_product = on_product
        try:
            batch = min(VISION.batch, o.max_tiles)
            self.vision = VisionEncoder.load(model.vision_path, self._backend, batch)
            self.audio = AudioEncoder.load(model.audio_path, self._backend)
            self.session = self._load_session(layout, on_product)
        except BaseException:
            self._backend.close()
            raise

    def _load_session(self, layout, on_product: Callable | None) -> Session:
        model, o, on_cpu = self.model, self.options, self.options.device == 'cpu'
        return Session.load(
            model.llm_path,
            layout,
            ModelOptions(
                0 if on_cpu else -1,
                o.device,
                o.rpc_servers,
                pre_tokenizer=model.manifest.pre_tokenizer,
                repack=o.repack,
            ),
            ContextOptions(
                o.n_ctx,
                o.n_ubatch,
                kv_type=o.kv_type,
                attention=o.attention,
                threads=o.threads,
                offload_kv=not on_cpu,
                on_product=on_product,
            ),
            SessionOptions(
                max_tokens=o.max_tokens,
                max_question_tokens=o.max_question_tokens,
                window_policy=o.window_policy,
                still=o.still,
                max_forks=o.max_forks,
                speech=model.speech(o.speech),
            ),
        )

    @property
    def is_cpu(self) -> bool:
        """Whether the encoders run on the CPU."""
        return self._backend.is_cpu

    def close(self) -> None:
        """Free everything."""
        self.session.close()
        self._backend.close()

    def see(self, clip: Clip, grey: bool = False) -> list:
        """Return the ImageSeconds of a clip."""
        return list(self._image_seconds(clip, grey))

    def hear(self, clip: Clip, offline: bool = False, silent: bool = False) -> list:
        """Return (second, rows or None) of a clip's audio."""
        if offline:
            return self._hear_offline(_audio(clip, silent))
        return [(second.second, second.rows) for second in self._audio_seconds(clip, silent)]

    def stream(self, clip: Clip, grey: bool = False, silent: bool = False) -> Iterator[Unit]:
        """Yield the Units of a clip one by one, as they are encoded, however many there are."""
        last = None
        seconds = merge(
            self._image_seconds(clip, grey),
            self._audio_seconds(clip, silent),
            key=lambda half: half.second,
        )
        for second, halves in groupby(seconds, key=lambda half: half.second):
            if last is not None and second <= last:
                raise InputError(STAMPS_GO_BACK)
            last, unit = second, Unit(second)
            for half in halves:
                if isinstance(half, ImageSecond):
                    tiles = half.tiles_wide, half.tiles_high
                    unit = replace(unit, image_rows=half.rows, tiles=tiles)
                else:
                    unit = replace(unit, audio_rows=half.rows, level_dbfs=half.level_dbfs)
            if unit.image_rows is not None or unit.audio_rows is not None:
                yield unit

    def _image_seconds(self, clip: Clip, grey: bool):
        pipeline, last = image_pipeline(self.vision, self.options), None
        for image in clip.images:
            yield from self._checked(pipeline.advance(image.stamp_ns))
            pipeline.offer(image.stamp_ns, partial(shown, image, grey), as_needed=True)
            last = image.stamp_ns
        if last is not None:
            yield from self._checked(pipeline.close(last // 10**9))

    def _audio_seconds(self, clip: Clip, silent: bool):
        pipeline = AudioPipeline(self.audio)
        for chunk in _audio(clip, silent):
            yield from self._checked(pipeline.push(*chunk))
        yield from self._checked(pipeline.flush())

    def _checked(self, seconds: list) -> list:
        lost = [second for second in seconds if second.status == Status.LOST]
        if lost and self.strict:
            raise InputError(f'The second {lost[0].second} was lost: {lost[0].reason}')
        return seconds

    def _hear_offline(self, audio: Iterator[tuple]) -> list:
        """Encode a whole clip's spectrum under the chunk-causal mask, which the stream is.

        As the published offline path does, what is longer than the encoder's positions is cut into
        pieces, each with a spectrum of its own and positions from 0.
        """
        splitter = SecondSplitter(look_ahead_samples=0)
        cut = [second for chunk in audio for second in splitter.push(*chunk)] + splitter.flush()
        if any(second.begins_stream for second in cut[1:]):
            raise InputError('A clip whose audio has a long gap cannot be heard offline.')
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

    def answer(self, units: list, questions: list, view: InView = NOTHING) -> list:
        """Read units into an empty window and give a live Answer to each question.

        view: what questions that look closer may look at.
        """
        session = self.session
        session.reset()
        for unit in units:
            session.append(unit)
        if session.window.seconds != [unit.second for unit in units]:
            raise InputError(
                f'A window of {len(units)} s does not fit into {self.options.n_ctx} '
                'positions. Raise n_ctx.'
            )
        return [ask_scored(self, question, view) for question in questions]

    def ask(
        self,
        text: str,
        choices: tuple = (),
        json_schema: str = '',
        image: ImageSecond | None = None,
        asked_s: float | None = None,
    ) -> Answer:
        """Answer a question about what the session has read, with an image before it or none."""
        question = Question(text, choices, json_schema=json_schema, image=image)
        try:
            answering = self.session.ask(question, asked_s)
        except (InputError, ContextFullError) as error:
            if self.strict:
                raise
            return Answer(text, '', Finish.ERROR, error)
        return answering.complete()


class EncodedClip:
    """A clip's windows that begin at start_s; each stream is encoded when first asked for.

    An image's rows depend on the images before it alone and are shared by all windows. A
    second's audio is encoded with a moment of what follows it, and offline with the maximum of all
    that is heard: every window hears its own seconds only.
    """

    def __init__(self, core: Core, clip: Clip, start_s: int):
        self._core, self._clip, self._start_s = core, clip, start_s
        self._seen, self._heard, self._end_s = {}, {}, None  # the last two of one window

    def units(self, variant: Variant, end_s: int) -> list:
        """Return the units of the window that ends there; variants of one window come together."""
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
    """Pair ImageSeconds and (second, rows) of audio into Units, in order."""
    assembler = UnitAssembler(max_pending=len(seen) + len(heard) + 1)
    for image in seen:
        assembler.add_image(
            image.second, image.rows, (image.tiles_wide, image.tiles_high), Instant(0.0)
        )
    for second, rows in heard:
        assembler.add_audio(second, rows, Instant(0.0))
    units = assembler.due(Instant(math.inf))
    if assembler.jumps or assembler.late:
        raise InputError(STAMPS_GO_BACK)
    return units


def answer_clip(core: Core, clip: Clip, questions: list, variants: list):
    """Yield (variant, question, Answer) for questions about one clip, window by window.

    Windows come in the order of their first question.
    """
    windows = by_window(questions, clip.first_s)
    ends, encoded = {}, {}  # by start_s: the ends of its windows that are to come; an EncodedClip
    for start_s, end_s in windows:
        ends.setdefault(start_s, []).append(end_s)
    for (start_s, end_s), asked in windows.items():
        if start_s not in encoded:
            encoded[start_s] = EncodedClip(
                core, clip.between(start_s, max(ends[start_s])), start_s
            )
        for variant in variants:
            units = encoded[start_s].units(variant, end_s)
            inside = units_inside(units, asked, start_s, end_s, core.strict)
            view = InView.of(clip, start_s, end_s, variant.input == 'no_picture')
            answers = answer_window(core, inside, asked, end_s, view)
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


def _audio(clip: Clip, silent: bool) -> Iterator[tuple]:
    return ((stamp_ns, samples * 0 if silent else samples) for stamp_ns, samples in clip.audio)
