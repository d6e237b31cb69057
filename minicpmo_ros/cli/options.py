# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What several verbs have in common: the model, options, questions, progress."""

import os
import sys
from argparse import ArgumentTypeError
from pathlib import Path

from minicpmo_ros.config import COMPUTING
from minicpmo_ros.errors import InputError

HELP = 'model directory, or the name of an embedded model (nano)'


def model_path(given: str) -> Path:
    """Return the path as it is, or that of a model which is installed or lies in the checkout."""
    path = Path(given).expanduser()
    prefixes = os.environ.get('AMENT_PREFIX_PATH', '').split(':')
    embedded = [Path(prefix) / 'share/minicpmo_ros/models' for prefix in prefixes if prefix]
    embedded.append(Path(__file__).parents[2] / 'models')
    if path.exists() or len(path.parts) != 1:
        return path
    return next((each / path for each in embedded if (each / path).is_dir()), path)


def add_asking_arguments(parser) -> None:
    """Declare --questions, --limit, --device, --threads and --speech."""
    parser.add_argument(
        '--questions',
        type=Path,
        metavar='FILE',
        help='questions.json in the folder of its clips; default: the questions that ship',
    )
    parser.add_argument('--limit', type=count, metavar='N', help='ask only the first N')
    add_device_argument(parser)
    parser.add_argument(
        '--threads',
        type=count,
        default=len(os.sched_getaffinity(0)),
        help='CPU threads that compute',
    )
    add_speech_argument(parser)


def add_device_argument(parser) -> None:
    """Declare --device."""
    parser.add_argument(
        '--device',
        choices=('auto', 'cpu', 'gpu'),
        default=COMPUTING.device,
        help='where the model runs; auto: on the GPU if there is one',
    )
    parser.add_argument(
        '--rpc-servers',
        default=COMPUTING.rpc_servers,
        metavar='HOST:PORT,...',
        help='RPC servers of llama.cpp, whose devices are then the GPUs',
    )


def add_speech_argument(parser) -> None:
    """Declare --speech."""
    parser.add_argument(
        '--speech',
        choices=('auto', 'true', 'false'),
        default='auto',
        help='whether answers open with the tokens that prepare a voice, as the published '
        'models learned; auto: as the manifest says',
    )


def add_topic_arguments(parser) -> None:
    """Declare --image-topic, --audio-topic, --audio-channel and --audio-format."""
    parser.add_argument(
        '--image-topic',
        default='',
        metavar='TOPIC',
        help='the camera, if a bag has several; compressed images are expected on this '
        'name with /compressed',
    )
    parser.add_argument(
        '--audio-topic', default='', metavar='TOPIC', help='the microphone, if a bag has several'
    )
    parser.add_argument(
        '--audio-channel',
        default='mean',
        metavar='CHANNEL',
        help='mean of the channels of the audio (default), or the number of one channel, '
        'counted from 0',
    )
    parser.add_argument(
        '--audio-format',
        default='',
        metavar='FORMAT',
        help='format of raw audio in a bag without AudioInfo: rate in hertz, channels and '
        'sample format, such as 16000,1,S16LE, or mp3',
    )


def sources_of(arguments):
    """Return the camera and the microphone that add_topic_arguments' options name, checked."""
    from minicpmo_ros.evaluation.bags.clip import Sources
    from minicpmo_ros.media.audio.channels import parse_channel
    from minicpmo_ros.media.audio.stream import AudioFormat

    AudioFormat.parse(arguments.audio_format)
    parse_channel(arguments.audio_channel)
    a = arguments
    return Sources(a.image_topic, a.audio_topic, a.audio_channel, a.audio_format)


def asked_questions(arguments):
    """Read the questions that the options name."""
    from minicpmo_ros.evaluation.questions import QuestionSet

    questions = QuestionSet.read(arguments.questions or shipped_questions())
    return questions.first(arguments.limit) if arguments.limit else questions


def core_options(arguments):
    """Return how the model runs."""
    from minicpmo_ros.evaluation.runner import CoreOptions

    return CoreOptions(
        device=arguments.device,
        rpc_servers=arguments.rpc_servers,
        threads=arguments.threads,
        speech=arguments.speech,
    )


def progress(what):
    """Return what tells how many questions are done, on a terminal; None elsewhere."""
    if not sys.stderr.isatty():
        return None
    return lambda done, total: print(
        f'\r{what}: {done} of {total} questions', end='', file=sys.stderr, flush=True
    )


def end_progress() -> None:
    """End the line of progress()."""
    if sys.stderr.isatty():
        print(file=sys.stderr)


def shipped_questions() -> Path:
    """Find the questions that come with the package, in the source tree or installed."""
    source = Path(__file__).resolve().parents[2] / 'demo' / 'clips' / 'questions.json'
    if source.is_file():
        return source
    from ament_index_python.packages import get_package_share_directory

    try:
        return Path(get_package_share_directory('minicpmo_ros')) / 'demo/clips/questions.json'
    except (LookupError, OSError) as error:
        raise InputError(
            'The questions that ship are in the source tree and in an installed '
            'package that is sourced. Source it, or give --questions.'
        ) from error


def count(text: str) -> int:
    """Read an option that is a whole number from 1 on."""
    count = int(text)
    if count < 1:
        raise ArgumentTypeError('1 or more is expected')
    return count
