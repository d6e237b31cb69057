# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Small clips and questions about them, for the tests of the evaluation."""

import io
import sqlite3
from contextlib import closing

import mcap.writer
import numpy as np
from mcap.writer import CompressionType
from PIL import Image

from minicpmo_ros.evaluation.bags import writing
from minicpmo_ros.evaluation.bags.bags import Bag
from minicpmo_ros.evaluation.bags.clip import RAW_IMAGE, type_store
from minicpmo_ros.evaluation.bags.writing import write_clip
from minicpmo_ros.evaluation.questions import QuestionSet, ScoredQuestion
from minicpmo_ros.units import NS

START_S = 1_750_000_000
COLORS = ((210, 30, 30), (30, 160, 60), (40, 60, 210), (230, 220, 50))
FAMILIES = ('scene', 'source')


def jpeg(color, width=64, height=48) -> bytes:
    """Give a picture: a coloured square on grey."""
    picture = np.full((height, width, 3), 120, np.uint8)
    picture[10:30, 10:40] = color
    file = io.BytesIO()
    Image.fromarray(picture).save(file, 'JPEG', quality=90)
    return file.getvalue()


def sound(seconds: int) -> np.ndarray:
    """Give a tone that rises every second, (16000 n,) float32."""
    t = np.arange(16000) / 16000
    return np.concatenate(
        [0.4 * np.sin(2 * np.pi * 200 * (i + 1) * t) for i in range(seconds)]
    ).astype(np.float32)


def write_test_clip(path, seconds: int, start_s: int = START_S) -> None:
    """Write a clip whose color and tone change every second."""
    pictures = [(i * NS + NS // 2, jpeg(COLORS[i % 4])) for i in range(seconds)]
    write_clip(path, start_s, pictures, sound(seconds))


def write_long_clip(path, hole_s: int, start_s: int = START_S) -> None:
    """Write a clip of two seconds, and an image so many seconds behind them."""
    pictures = [(second * NS, jpeg(COLORS[0])) for second in (0, 1, 2 + hole_s)]
    write_clip(path, start_s, pictures, sound(2))


def write_question_set(folder, lengths=(2, 3)) -> QuestionSet:
    """Write a clip for each length, and two questions about it; read what was written."""
    questions = []
    for i, seconds in enumerate(lengths):
        start_s = START_S + 100 * i
        write_test_clip(folder / f'{i}.mcap', seconds, start_s)
        for family in FAMILIES:
            questions.append(
                ScoredQuestion(
                    f'{i}-{family}',
                    f'{i}.mcap',
                    start_s,
                    start_s + seconds,
                    family,
                    f'what about the {family}?',
                    ('red',),
                    chance=0.25,
                    hard=bool(i % 2),
                )
            )
    QuestionSet(tuple(questions), 'test').write(folder / 'questions.json')
    return QuestionSet.read(folder / 'questions.json')


def write_raw_images(path, seconds: int) -> None:
    """Write an MCAP file of raw images, 640 x 480, one a second."""
    types, pixels = type_store(), np.zeros(640 * 480 * 3, np.uint8)
    with path.open('wb') as file:
        writer = mcap.writer.Writer(file, compression=CompressionType.NONE, enable_crcs=False)
        writer.start('ros2')
        schema = writer.register_schema(RAW_IMAGE, 'ros2msg', b'')
        channel = writer.register_channel('/camera', 'cdr', schema)
        for i in range(seconds):
            header = writing.make_header(types, (START_S + i) * NS, 'camera')
            message = types.types[RAW_IMAGE](header, 480, 640, 'rgb8', 0, 640 * 3, pixels)
            data = bytes(types.serialize_cdr(message, RAW_IMAGE))
            writer.add_message(channel, START_S + i, data, 0)
        writer.finish()


def as_db3(source, path):
    """Store the messages of a bag as rosbag2's sqlite3 storage does."""
    bag = Bag(source)
    messages = list(bag.messages())
    topics = {topic: i for i, topic in enumerate(bag.topics, 1)}
    with closing(sqlite3.connect(path)) as database, database:
        database.executescript(
            'CREATE TABLE topics(id INTEGER PRIMARY KEY, name TEXT NOT NULL, type TEXT NOT NULL);'
            'CREATE TABLE messages(id INTEGER PRIMARY KEY, topic_id INTEGER NOT NULL,'
            'timestamp INTEGER NOT NULL, data BLOB NOT NULL);'
        )
        named = ((number, topic, bag.topics[topic]) for topic, number in topics.items())
        database.executemany('INSERT INTO topics VALUES (?, ?, ?)', named)
        database.executemany(
            'INSERT INTO messages (topic_id, timestamp, data) VALUES (?, ?, ?)',
            ((topics[m.topic], m.log_ns, m.data) for m in messages),
        )
    return path
