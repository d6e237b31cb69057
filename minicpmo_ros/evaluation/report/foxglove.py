# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""An MCAP file for Foxglove: what was seen and heard in each second, and the answers about it.

Foxglove shows every topic of the file without an extension and without ROS: the images are
sensor_msgs/CompressedImage, the rest is JSON of schemas that Foxglove knows by name
(docs.foxglove.dev, message schemas), or of plain numbers and texts. Every message is logged at its
stamp. The names are those of the live topics where config/foxglove_layout.json shows them.

    /image/compressed   the newest image of each second
    /look/annotations   on it: the second, a frame if an answer rests on it, the newest answer
    /look/second        of each second: whether it has an image, its level, how many answers rest
                        on it
    /look/audio         its audio, 16 kHz
    /llm/answer         every answer, with the seconds that it rests on
    /rosout             question and answer, as lines of a log; images that cannot be read
"""

import base64
import json
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rosbags.typesys import get_types_from_msg

from minicpmo_ros.documents import appearing
from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.bags.bags import Bag
from minicpmo_ros.evaluation.bags.clip import (
    IMAGE,
    SAMPLE_RATE_HZ,
    Clip,
    ClipImage,
    new_type_store,
    type_store,
)
from minicpmo_ros.evaluation.bags.writing import make_header
from minicpmo_ros.evaluation.questions import QuestionSet
from minicpmo_ros.evaluation.report.plots import samples_by_second
from minicpmo_ros.evaluation.results import Run
from minicpmo_ros.media.image.caption import lines_of, text_height
from minicpmo_ros.media.image.compressed import encode_jpeg
from minicpmo_ros.streams.audio import level_dbfs
from minicpmo_ros.units import NS

ANSWER = 'minicpmo_ros/msg/Answer'
IMAGES, AUDIO, ANSWERS, LOG = '/image/compressed', '/look/audio', '/llm/answer', '/rosout'
ANNOTATIONS, SECONDS = '/look/annotations', '/look/second'
JPEG_BEGIN, QUALITY = b'\xff\xd8\xff', 90
SILENCE_DBFS = -120.0  # of zeros, in place of minus infinity
LONGEST_ANSWER_S = 600  # after its window; a stamp further away is of another clock
INFO, WARNING = 2, 3  # levels of foxglove.Log
LINE_LOOP = 2  # of foxglove.PointsAnnotation
TEXT, NUMBER, INTEGER = {'type': 'string'}, {'type': 'number'}, {'type': 'integer'}
WHITE, BLACK = {'r': 1.0, 'g': 1.0, 'b': 1.0, 'a': 1.0}, {'r': 0.0, 'g': 0.0, 'b': 0.0, 'a': 0.6}
GREEN, NONE = {'r': 0.1, 'g': 0.7, 'b': 0.3, 'a': 1.0}, {'r': 0.0, 'g': 0.0, 'b': 0.0, 'a': 0.0}


def _object(**properties) -> dict:
    return {'type': 'object', 'properties': properties}


def _list(items: dict) -> dict:
    return {'type': 'array', 'items': items}


TIME = {**_object(sec=INTEGER, nsec=INTEGER), 'title': 'time'}
POINT, COLOR = _object(x=NUMBER, y=NUMBER), _object(r=NUMBER, g=NUMBER, b=NUMBER, a=NUMBER)
FRAMES = _object(
    timestamp=TIME, type=INTEGER, points=_list(POINT), outline_color=COLOR,
    outline_colors=_list(COLOR), fill_color=COLOR, thickness=NUMBER,
)  # fmt: skip
LABELS = _object(
    timestamp=TIME, position=POINT, text=TEXT, font_size=NUMBER, text_color=COLOR,
    background_color=COLOR,
)  # fmt: skip
SCHEMAS = {  # topic: (name, JSON schema)
    ANNOTATIONS: (
        'foxglove.ImageAnnotations',
        _object(circles=_list(_object()), points=_list(FRAMES), texts=_list(LABELS)),
    ),
    AUDIO: (
        'foxglove.RawAudio',
        _object(timestamp=TIME, data={**TEXT, 'contentEncoding': 'base64'}, format=TEXT,
                sample_rate=INTEGER, number_of_channels=INTEGER),
    ),
    LOG: (
        'foxglove.Log',
        _object(timestamp=TIME, level=INTEGER, message=TEXT, name=TEXT, file=TEXT, line=INTEGER),
    ),
    ANSWERS: (
        'minicpmo_ros.Answer',
        _object(timestamp=TIME, id=TEXT, question=TEXT, text=TEXT, reason=TEXT,
                seconds=_list(INTEGER), first_token_ms=NUMBER),
    ),
    SECONDS: (
        'minicpmo_ros.Second',
        _object(timestamp=TIME, second=INTEGER, has_image={'type': 'boolean'}, level_dbfs=NUMBER,
                answers=INTEGER),
    ),
}  # fmt: skip


@dataclass(frozen=True)
class GivenAnswer:
    """One answer, in the time of the stamps."""

    given_ns: int
    question: str
    text: str
    seconds: tuple = ()  # that it rests on, oldest first
    id: str = ''
    first_token_ms: float = 0.0
    reason: str = ''  # why there is none, or what it lacks


@dataclass
class Written:
    """What a file has."""

    images: int = 0
    seconds: int = 0
    answers: int = 0


def answers_in_bag(path) -> tuple:
    """Return (the answers of a bag as GivenAnswer in order, sentences on those that are lost).

    They are read by the bag's own definition.
    """
    bag, store, answers, n_lost = Bag(path), None, [], 0
    for message in bag.messages((ANSWER,)):
        if store is None and not bag.definitions.get(ANSWER):
            told = 'Its answers are left out: the bag does not say what is in such a message.'
            return (), (f'{told} Take those of a run by --answers, or record as MCAP.',)
        store = store or _store_of(bag.definitions[ANSWER])
        try:
            answers.append(_given(store.deserialize_cdr(message.data, ANSWER)))
        except Exception:  # of damaged bytes almost anything comes
            n_lost += 1
    losses = (f'{n_lost} answers are damaged.',) if n_lost else ()
    return tuple(sorted(answers, key=lambda answer: answer.given_ns)), losses


def _store_of(definition: str):
    store, types = new_type_store(), get_types_from_msg(definition, ANSWER)
    store.register({name: one for name, one in types.items() if name not in store.types})
    return store


def _given(message) -> GivenAnswer:
    window_ns, given_ns = (
        stamp.sec * NS + stamp.nanosec for stamp in (message.window_end, message.header.stamp)
    )
    # Of a recording that was played, the stamps are old and the answer is of today.
    if window_ns and not 0 <= given_ns - window_ns <= LONGEST_ANSWER_S * NS:
        given_ns = window_ns
    seconds = getattr(message, 'seconds', ())  # came later than the rest
    return GivenAnswer(
        given_ns,
        message.question,
        message.text,
        tuple(int(second) for second in seconds),
        message.id,
        float(message.first_token_ms),
        message.reason,
    )


def answers_of_run(folder, questions: QuestionSet, bag, first_s: int) -> tuple:
    """Return the answers (GivenAnswer) of a run about one bag; first_s: the bag's first second.

    Each was given when its window ended. InputError where none is about this bag.
    """
    run, bag, answers = Run.read(folder), Path(bag).resolve(), []
    for question in questions.questions:
        if questions.path_of(question.clip).resolve() != bag or question.id not in run.texts:
            continue
        start_s, end_s = question.window(first_s)
        cost = run.costs.get(question.id, {})
        answers.append(
            GivenAnswer(
                end_s * NS,
                question.text,
                run.texts[question.id],
                tuple(range(start_s, end_s)),
                question.id,
                float(cost.get('first_token_ms', 0.0)),
                str(cost.get('error', '')),
            )
        )
    if not answers:
        raise InputError(f'{folder}: none of its answers is about {bag}. Check --questions.')
    return tuple(sorted(answers, key=lambda answer: answer.given_ns))


def write_foxglove(path, blocks: Iterable, answers: tuple, first_s: int) -> Written:
    """Write the file; it appears whole or not at all.

    blocks: of (start_s, end_s, Clip) in order, the seconds [start_s, end_s) of the stamps; each is
    dropped when it is written. answers: all that are to be in the file, in order. first_s: from
    which the seconds are counted that are told on the images.
    """
    from mcap.writer import CompressionType, Writer

    resting = defaultdict(int)
    for answer in answers:
        for second in answer.seconds:
            resting[second] += 1
    with appearing(Path(path)) as file:
        writer = Writer(file, compression=CompressionType.ZSTD)
        writer.start('', 'minicpmo_ros')
        tape, waiting = _Tape(writer, first_s), list(answers)
        for start_s, end_s, clip in blocks:
            for at_ns, second, image, samples in _seconds(start_s, end_s, clip):
                while waiting and waiting[0].given_ns < at_ns:
                    tape.put_answer(waiting.pop(0))
                tape.put_second(second, image, samples, resting[second])
        for answer in waiting:
            tape.put_answer(answer)
        writer.finish()
    return tape.written


def _seconds(start_s: int, end_s: int, clip: Clip) -> Iterator[tuple]:
    """Yield (stamp_ns, second, ClipImage or None, samples (16000,) or None) of what is there."""
    images = {image.stamp_ns // NS: image for image in clip.images}
    audio = samples_by_second(clip)
    for second in sorted({*images, *audio}):
        if start_s <= second < end_s:
            image = images.get(second)
            yield image.stamp_ns if image else second * NS, second, image, audio.get(second)


class _Tape:
    """Writes the topics of the module's table."""

    def __init__(self, writer, first_s: int):
        self._writer, self._first_s = writer, first_s
        self._types, self.written = type_store(), Written()
        self._channels = {
            topic: writer.register_channel(
                topic, 'json', writer.register_schema(name, 'jsonschema', _encoded(schema))
            )
            for topic, (name, schema) in SCHEMAS.items()
        }
        text, _ = self._types.generate_msgdef(IMAGE, ros_version=2)
        schema = writer.register_schema(IMAGE, 'ros2msg', text.encode())
        self._channels[IMAGES] = writer.register_channel(IMAGES, 'cdr', schema)
        self._newest, self._size = None, None  # answer; width and height of the newest image
        self._caption, self._has_frame = '', False  # of that image

    def put_second(self, second: int, image: ClipImage | None, samples, n_answers: int) -> None:
        """Write what was seen and heard in a second; samples (16000,) float32 or None."""
        told = {'second': second, 'has_image': False, 'answers': n_answers}
        if image is not None and (problem := image.rgb.problem):
            self._log(image.stamp_ns, WARNING, f'{second - self._first_s} s: {problem}')
        elif image is not None:
            told['has_image'] = True
            self._put_image(second, image, n_answers)
        if samples is not None:
            told['level_dbfs'] = round(max(level_dbfs(samples), SILENCE_DBFS), 2)
            pcm = np.clip(np.rint(samples * 32767), -32768, 32767).astype('<i2')  # (16000,)
            data = base64.b64encode(pcm.tobytes()).decode()
            self._put(
                AUDIO, second * NS,
                {'data': data, 'format': 'pcm-s16', 'sample_rate': SAMPLE_RATE_HZ,
                 'number_of_channels': 1},
            )  # fmt: skip
        self._put(SECONDS, second * NS, told)
        self.written.seconds += 1

    def _put_image(self, second: int, image: ClipImage, n_answers: int) -> None:
        pixels = image.rgb()  # (H, W, 3) uint8
        data = image.compressed()[1]
        # A raw image, 16 bits and the like: as the model sees it.
        data = data if data.startswith(JPEG_BEGIN) else encode_jpeg(pixels, QUALITY)
        message = self._types.types[IMAGE](
            header=make_header(self._types, image.stamp_ns, 'camera'),
            format='jpeg',
            data=np.frombuffer(data, np.uint8),
        )
        cdr = bytes(self._types.serialize_cdr(message, IMAGE))
        at_ns = image.stamp_ns
        self._writer.add_message(self._channels[IMAGES], at_ns, cdr, at_ns)
        self.written.images += 1
        self._size, self._has_frame = pixels.shape[1::-1], n_answers > 0
        resting = {0: '', 1: ', an answer rests on it'}
        told = resting.get(n_answers, f', {n_answers} answers rest on it')
        self._caption = f'{second - self._first_s} s{told}'
        self._put(ANNOTATIONS, at_ns, self._annotations(at_ns))

    def put_answer(self, answer: GivenAnswer) -> None:
        """Write an answer, and show it on the newest image."""
        self._newest, at_ns = answer, answer.given_ns
        self._put(
            ANSWERS, at_ns,
            {'id': answer.id, 'question': answer.question, 'text': answer.text,
             'reason': answer.reason, 'seconds': list(answer.seconds),
             'first_token_ms': round(answer.first_token_ms, 1)},
        )  # fmt: skip
        lacks = f' ({answer.reason})' if answer.reason else ''
        level = INFO if answer.text else WARNING
        self._log(at_ns, level, f'{answer.question}\n{answer.text}{lacks}')
        if self._size is not None:
            self._put(ANNOTATIONS, at_ns, self._annotations(at_ns))
        self.written.answers += 1

    def _annotations(self, at_ns: int) -> dict:
        (width, height), stamp = self._size, _time(at_ns)
        size, newest = text_height(height), self._newest
        lines = lines_of((newest.question, newest.text), width, height) if newest else []
        rows = [(size * 1.2, self._caption)]
        for i, line in enumerate(reversed(lines)):
            rows.append((height - size * (0.4 + 1.3 * i), line))
        texts = [
            {'timestamp': stamp, 'position': {'x': 0.4 * size, 'y': y}, 'text': line,
             'font_size': size, 'text_color': WHITE, 'background_color': BLACK}
            for y, line in rows
        ]  # fmt: skip
        corners = [{'x': x, 'y': y} for x, y in ((0, 0), (width, 0), (width, height), (0, height))]
        frame = {
            'timestamp': stamp, 'type': LINE_LOOP, 'points': corners, 'outline_color': GREEN,
            'outline_colors': [], 'fill_color': NONE, 'thickness': max(2.0, size / 3),
        }  # fmt: skip
        return {'circles': [], 'points': [frame] * self._has_frame, 'texts': texts}

    def _log(self, at_ns: int, level: int, text: str) -> None:
        told = {'level': level, 'message': text, 'name': 'look', 'file': '', 'line': 0}
        self._put(LOG, at_ns, told)

    def _put(self, topic: str, at_ns: int, message: dict) -> None:
        if 'timestamp' in SCHEMAS[topic][1]['properties']:
            message = {'timestamp': _time(at_ns), **message}
        self._writer.add_message(self._channels[topic], at_ns, _encoded(message), at_ns)


def _time(at_ns: int) -> dict:
    return dict(zip(('sec', 'nsec'), divmod(at_ns, NS)))


def _encoded(value: dict) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode('utf-8', 'replace')
