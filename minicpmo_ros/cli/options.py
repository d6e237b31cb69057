# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""What several verbs have in common: the model, options, questions, progress."""

import os
import sys
from argparse import ArgumentTypeError
from pathlib import Path

from minicpmo_ros.config import COMPUTING, EVALUATION, LLM, TILE_RULES, VISION
from minicpmo_ros.errors import InputError
from minicpmo_ros.verbs.arguments import amount, number_of

HELP = 'model directory, or the name of an embedded model (nano)'


OPTIONS = (
    'device', 'rpc_servers', 'threads', 'prompt', 'speech', 'n_ctx', 'kv_type', 'window_policy',
    'still', 'max_tokens', 'max_question_tokens', 'max_tiles', 'area', 'crop', 'sharp_every',
    'look_tiles', 'tile_rule', 'tile_alpha', 'unchanged_threshold',
)  # fmt: skip


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
    from minicpmo_ros.media.audio.format import AudioFormat, parse_channel

    AudioFormat.parse(arguments.audio_format)
    parse_channel(arguments.audio_channel)
    a = arguments
    return Sources(a.image_topic, a.audio_topic, a.audio_channel, a.audio_format)


def add_core_arguments(parser) -> None:
    """Declare the OPTIONS: how the model runs."""
    add_device_argument(parser)
    parser.add_argument(
        '--threads', type=count, default=EVALUATION.threads, help='CPU threads of each worker'
    )
    parser.add_argument(
        '--max-tokens',
        type=count,
        default=EVALUATION.max_tokens,
        help='the longest answer, in tokens',
    )
    parser.add_argument(
        '--max-question-tokens',
        type=count,
        metavar='N',
        help='the longest question, in tokens; default: what the longest question needs, '
        'at least 384',
    )
    _add_window_arguments(parser)
    _add_vision_arguments(parser)
    parser.add_argument('--prompt', default=LLM.prompt, help='layout of the prompt: en or zh')
    add_speech_argument(parser)


def _add_window_arguments(parser) -> None:
    """Declare what the window holds."""
    parser.add_argument(
        '--n-ctx', type=count, default=LLM.n_ctx, help='size of the context in positions'
    )
    parser.add_argument(
        '--kv-type', choices=('f16', 'q8_0'), default=LLM.kv_type, help='type of keys and values'
    )
    parser.add_argument(
        '--window-policy',
        choices=('recent', 'long'),
        default=LLM.window_policy,
        help='what is evicted when the window is full',
    )
    parser.add_argument(
        '--still',
        action='store_true',
        help='leave out images that have not changed (parameter window.still)',
    )


def _add_vision_arguments(parser) -> None:
    """Declare which images are seen, and what of them."""
    parser.add_argument(
        '--unchanged-threshold',
        type=amount,
        default=VISION.unchanged_threshold,
        help='an image that differs from the last image by less is not encoded again; '
        'levels of 255; 0: encode all',
    )
    parser.add_argument(
        '--area',
        type=amount,
        default=VISION.area,
        help="of the overview, 0.25 to 1.0 of the model's own (default: %(default)s)",
    )
    parser.add_argument(
        '--crop',
        default=VISION.crop,
        metavar='"X0 Y0 X1 Y1"',
        help='the part of images that is seen, as shares of width and height',
    )
    parser.add_argument(
        '--sharp-every',
        type=count,
        default=VISION.sharp_every,
        metavar='S',
        help='every S seconds the overview has all of the area',
    )
    _add_tile_arguments(parser)


def _add_tile_arguments(parser) -> None:
    parser.add_argument(
        '--max-tiles', type=count, default=VISION.max_tiles, help='the most tiles of an image'
    )
    parser.add_argument(
        '--look-tiles',
        type=count,
        default=VISION.look_tiles,
        help='the most tiles of an image that a question looks at in tiles',
    )
    parser.add_argument(
        '--tile-rule',
        choices=TILE_RULES,
        default=VISION.tile_rule,
        help='how the grid of tiles is chosen',
    )
    parser.add_argument(
        '--tile-alpha',
        type=amount,
        default=VISION.tile_alpha,
        help='of the rule relaxed: how much more of the image more tiles must show',
    )


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


def all_core_options(arguments):
    """Return how the model runs, as all OPTIONS say it."""
    from minicpmo_ros.evaluation.runner import CoreOptions

    given = {name: getattr(arguments, name) for name in OPTIONS}  # None: as many as are needed
    return CoreOptions(**{name: 0 if value is None else value for name, value in given.items()})


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
    count = number_of(text, int)
    if not count >= 1:
        raise ArgumentTypeError('a whole number from 1 on is expected')
    return count
