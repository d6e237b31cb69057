# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The parameters of node `llm`, and what they mean to the model and its session."""

import resource

from minicpmo_ros.errors import EngineError, InputError
from minicpmo_ros.ggml.runtime import check_device
from minicpmo_ros.language.context import KV_TYPES, ContextOptions
from minicpmo_ros.language.model import ModelOptions
from minicpmo_ros.language.prompt import LAYOUTS
from minicpmo_ros.language.sampling import SamplingOptions
from minicpmo_ros.live.session import Session, SessionOptions
from minicpmo_ros.live.window import POLICIES
from minicpmo_ros.nodes.loading import MODEL_PARAMETERS, thread_count
from minicpmo_ros.nodes.memory_room import Room
from minicpmo_ros.nodes.parameters import ANY_TIME, Parameter

PARAMETERS = (
    *MODEL_PARAMETERS,
    Parameter('prompt', 'en', 'Language of the system prompt', choices=('en', 'zh')),
    Parameter('system_text', '', 'Instead of the system prompt of the model; empty: its own'),
    Parameter('gpu_layers', -1, 'Layers of the language model on the GPU; -1: all, where there '
              'is one', '', -1, 1000),
    Parameter('use_mmap', True, 'Map the weights from the file: loads at once, and memory can be '
              'taken back. False reads them'),
    Parameter('use_mlock', False, 'Lock the weights in memory: they are never paged out, and '
              'others have less. Needs a limit of locked memory as large (ulimit -l)'),
    Parameter('repack', False, 'Reorder weights for the CPU: q4_0 reads faster, q4_K slower; '
              'with use_mmap they are then held twice'),
    Parameter('n_ctx', 4096, 'Context: 94 positions hold one second of picture and sound',
              'positions', 256, 1_048_576),
    Parameter('n_ubatch', 128, 'Positions read at once; more take more memory', 'positions',
              16, 4096),
    Parameter('kv_type', 'f16', 'Of keys and values; q8_0 takes half the memory',
              choices=tuple(KV_TYPES)),
    Parameter('window_policy', 'recent', 'Who leaves a full context: recent, the oldest seconds; '
              'long thins older ones, of which every 2nd, then every 4th stays, to reach three '
              'times as far back', choices=POLICIES),
    Parameter('memory_limit_mib', 0, 'What this process may occupy before the window shrinks, and '
              'then questions are refused; 0: any. Memory of a GPU of its own is not counted',
              'MiB', 0, 1_048_576, when=ANY_TIME),
    Parameter('memory_reserve_mib', 128, 'What of the memory of this machine must stay available '
              'before the same happens; 0: nothing', 'MiB', 0, 1_048_576, when=ANY_TIME),
    Parameter('unit_deadline', 2.0, 'How long the picture of a second waits for its sound, and '
              'the other way round', 'seconds', 0.0, 60.0),
    Parameter('max_backlog', 8, 'Seconds that may wait to be read; the oldest is dropped', '',
              1, 1000),
    Parameter('max_waiting', 16, 'Questions that may wait; more are refused', '', 1, 1000),
    Parameter('max_question_tokens', 384, 'Length of a question', 'tokens', 1, 100_000),
    Parameter('max_tokens', 256, 'Length of an answer', 'tokens', 1, 100_000),
    Parameter('temperature', 0.0, 'Freedom of an answer; 0: greedy, always the same', '',
              0.0, 10.0, when=ANY_TIME),
    Parameter('top_k', 100, 'Only the likeliest tokens; 0: all', 'tokens', 0, 1_000_000,
              when=ANY_TIME),
    Parameter('top_p', 0.8, 'Only the likeliest tokens that hold this share', '', 0.0, 1.0,
              when=ANY_TIME),
    Parameter('repeat_penalty', 1.05, 'Against repetition; 1: none', '', 0.1, 10.0, when=ANY_TIME),
    Parameter('seed', 0, 'Of the dice, where the temperature is not 0', '', 0, 2**31 - 1,
              when=ANY_TIME),
)  # fmt: skip


class LoadError(EngineError):
    """Loading failed in the engine's thread."""

    def __init__(self, reason: str, remedy: str):
        super().__init__(f'{reason}. {remedy}')
        self.reason, self.remedy = reason, remedy


def make_loader(options, checked, leaving: list, room: Room, warn):
    """Give what the engine calls in its thread to load the session.

    `leaving` holds the engine before, if there was one: two models at a time may not fit into
    memory, so its end is waited for.
    """

    def load(on_progress, abort) -> Session:
        waits = bool(leaving)
        while leaving:
            if leaving[0].close(timeout_s=5.0):
                leaving.clear()
            else:
                warn('the model before has not ended yet; loading waits for it')
        check_device(options.device)  # llama.cpp would take the CPU without a word
        model = checked.result()
        if waits:
            room.require_llm(model)
        if options.use_mlock and (refusal := lock_refusal(model.headers['llm'].size_bytes)):
            warn(refusal)
        layout = LAYOUTS.get(f'{model.family}/{options.prompt}')
        if layout is None:
            raise InputError(
                f'there is no prompt {options.prompt!r} for {model.family}; '
                f'known are {", ".join(LAYOUTS)}'
            )
        gpu_layers = 0 if options.device == 'cpu' else options.gpu_layers
        return Session.load(
            model.llm_path,
            layout,
            ModelOptions(
                gpu_layers,
                use_mmap=options.use_mmap,
                use_mlock=options.use_mlock,
                repack=options.repack,
            ),
            ContextOptions(
                n_ctx=options.n_ctx,
                n_batch=options.n_ubatch,
                kv_type=options.kv_type,
                threads=thread_count(options.threads),
                offload_kv=options.device != 'cpu',
            ),
            session_options(options),
            on_progress,
            abort,
        )

    return load


def lock_refusal(size_bytes: int) -> str:
    """Say why so much cannot be locked in memory, or ''; llama.cpp then goes on without."""
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if limit == resource.RLIM_INFINITY or limit >= size_bytes:
        return ''
    return (
        f'use_mlock is true, but this process may lock {limit / 2**20:.1f} MiB, the weights have '
        f'{size_bytes / 2**20:.0f}: they can be paged out. Raise the limit (ulimit -l unlimited, '
        'or LimitMEMLOCK=infinity of the service)'
    )


def session_options(options) -> SessionOptions:
    """Give what the parameters say about questions and answers."""
    return SessionOptions(
        max_tokens=options.max_tokens,
        max_question_tokens=options.max_question_tokens,
        window_policy=options.window_policy,
        system_text=options.system_text or None,
        sampling=sampling_options(options),
    )


def sampling_options(options) -> SamplingOptions:
    """Give what the parameters say about choosing tokens; these may change at any time."""
    return SamplingOptions(
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        repeat_penalty=options.repeat_penalty,
        seed=options.seed,
    )


def check(options) -> None:
    """Refuse parameters that contradict each other."""
    if options.n_ubatch > options.n_ctx:
        raise InputError(
            f'n_ubatch is {options.n_ubatch}, more than n_ctx, which is {options.n_ctx}; '
            'no more can be read at once than there is room for. Lower n_ubatch'
        )
    if options.device == 'cpu' and options.gpu_layers > 0:
        raise InputError(
            f"gpu_layers is {options.gpu_layers} and device 'cpu'; set gpu_layers to 0 or -1, or "
            "device to 'gpu' or 'auto'"
        )
