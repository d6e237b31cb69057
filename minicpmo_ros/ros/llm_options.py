# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The parameters of node `llm`, and the options of the model and session they set."""

import resource
from dataclasses import replace

from minicpmo_ros.config import ALERTS_TOGETHER, LLM
from minicpmo_ros.errors import EngineError, InputError
from minicpmo_ros.families import FAMILIES, LANGUAGES, find_layout
from minicpmo_ros.live.question import REQUIRED
from minicpmo_ros.live.session import Session
from minicpmo_ros.live.session_options import SessionOptions
from minicpmo_ros.live.window import POLICIES
from minicpmo_ros.llm.context import Context
from minicpmo_ros.llm.context_options import ATTENTION, KV_TYPES, ContextOptions
from minicpmo_ros.llm.model import ModelOptions
from minicpmo_ros.llm.sampling import SamplingOptions
from minicpmo_ros.modelset.directory import SPEECH
from minicpmo_ros.ros.alerts import ALERT_PARAMETERS
from minicpmo_ros.ros.framework.loading import MODEL_PARAMETERS, thread_count
from minicpmo_ros.ros.framework.parameters import ANY_TIME, Parameter
from minicpmo_ros.ros.memory import MemoryBudget
from minicpmo_ros.ros.notes import NOTE_PARAMETERS
from minicpmo_ros.ros.robots import ROBOTS_PARAMETER
from minicpmo_ros.ros.sessions import SESSION_PARAMETERS
from minicpmo_ros.streams.pairing import WAIT_FOR

PARAMETERS = (
    *MODEL_PARAMETERS,
    ROBOTS_PARAMETER,
    Parameter('prompt', LLM.prompt, 'Language of the system prompt', choices=LANGUAGES),
    Parameter('system_text', LLM.system_text,
              'Replaces the system prompt of the model; empty: keep it'),
    Parameter('speech', LLM.speech,
              'Whether answers open with the tokens that prepare a voice, as the published '
              'models learned; auto: as the manifest of the model says', choices=SPEECH),
    Parameter('gpu_layers', LLM.gpu_layers,
              'Layers of the language model on the GPU; -1: all, if there is a GPU', '', -1, 1000),
    Parameter('use_mmap', LLM.use_mmap,
              'Map the weights from the file: loading is immediate, and the system can reclaim '
              'the memory. If the file is cut or overwritten meanwhile, the process ends '
              '(SIGBUS). False reads the weights into memory'),
    Parameter('use_mlock', LLM.use_mlock,
              'Lock the weights in memory: they are never paged out, and other programs have '
              'less memory. The limit of locked memory (ulimit -l) must be as large as the '
              'weights'),
    Parameter('repack', LLM.repack,
              'Reorder weights for the CPU, not beside a GPU: all is faster with q4_0; with q4_K '
              'it depends on the CPU (minicpmo bench). With use_mmap the weights are then held '
              'twice'),
    Parameter('n_ctx', LLM.n_ctx,
              'Size of the context; one second of image and audio takes 94 positions',
              'positions', 256, 1_048_576),
    Parameter('n_ubatch', LLM.n_ubatch,
              'Positions that are read at once; more positions take more memory', 'positions',
              16, 4096),
    Parameter('kv_type', LLM.kv_type, 'Type of keys and values; q8_0 takes half the memory of '
              'f16',
              choices=tuple(KV_TYPES)),
    Parameter('attention', LLM.attention,
              'How attention is computed. fused is inexact for generated tokens on a CPU '
              'unless kv_type is q8_0, which needs it; plain takes a larger buffer; auto: '
              'plain on a CPU without q8_0, otherwise fused', choices=ATTENTION),
    Parameter('window_policy', LLM.window_policy,
              'What is evicted when the window is full. recent: the oldest seconds; long: of '
              'the older seconds, every 2nd and then every 4th stays, so that the window '
              'reaches three times as far back', choices=POLICIES),
    Parameter('window.still', LLM.still,
              'Leave out the image of a second if it has not changed since an earlier second of '
              'the window (see vision.unchanged_threshold), for up to 16 s. The window then '
              'reaches up to 2.9 times as far back. A second without audio keeps its image'),
    Parameter('memory_limit_mib', 0,
              'Memory this process may use. Above it the window shrinks, and if that does not '
              'help, questions are refused; 0: no limit. The memory of a separate GPU is not '
              'counted',
              'MiB', 0, 1_048_576, when=ANY_TIME),
    Parameter('memory_reserve_mib', 128,
              'Memory that must stay available on this machine. Below it the window shrinks, '
              'and if that does not help, questions are refused; 0: none',
              'MiB', 0, 1_048_576, when=ANY_TIME),
    Parameter('unit_deadline', LLM.unit_deadline_s,
              'How long the image of a second waits for its audio, and the other way round',
              'seconds', 0.0, 60.0),
    Parameter('wait_for', LLM.wait_for,
              'What a second waits for. auto: the inputs that come; both: image and audio, '
              'even if one of them never came; image, audio: only that input',
              choices=tuple(WAIT_FOR),
              when=ANY_TIME),
    Parameter('max_backlog', LLM.max_backlog,
              'The most seconds that may wait to be read; after that, the oldest is dropped', '',
              1, 1000),
    Parameter('max_waiting', LLM.max_waiting,
              'The most questions that may wait; further questions are refused', '', 1, 1000),
    Parameter('max_parallel', LLM.max_parallel,
              'The most questions that are answered together, in the same decodes; further '
              'questions wait', '', 1, 16),
    Parameter('max_question_tokens', LLM.max_question_tokens,
              'The longest question', 'tokens', 1, 100_000),
    Parameter('max_tokens', LLM.max_tokens, 'The longest answer', 'tokens', 1, 100_000),
    Parameter('required_evidence', LLM.required_evidence,
              'What must be in the window for a question to be answered. some: at least one '
              'second of images or audio; fresh: also, no input that came before may be '
              'missing or older than max_staleness_s; none: nothing. Otherwise the question is '
              'refused',
              choices=REQUIRED),
    Parameter('max_staleness_s', LLM.max_staleness_s,
              'If the newest second of an input is older than this, answers and ~/status say '
              'that it is stale', 'seconds', 0.1, 86_400.0),
    Parameter('reset_ends_questions', True,
              '~/reset also cancels the current question and all that wait; false: it only '
              'empties the window', when=ANY_TIME),
    Parameter('temperature', LLM.temperature,
              'Randomness of an answer; 0: greedy, always the same answer', '',
              0.0, 10.0, when=ANY_TIME),
    Parameter('top_k', LLM.top_k,
              'How many of the likeliest tokens are drawn from; 0: all', 'tokens', 0, 1_000_000,
              when=ANY_TIME),
    Parameter('top_p', LLM.top_p,
              'Draw only from the likeliest tokens that together have this probability',
              '', 0.0, 1.0,
              when=ANY_TIME),
    Parameter('repeat_penalty', LLM.repeat_penalty,
              'Penalty for repetition; 1: none', '', 0.1, 10.0, when=ANY_TIME),
    Parameter('seed', LLM.seed,
              'Seed for drawing tokens if the temperature is not 0; 0: a new seed for each '
              'question', '', 0, 2**31 - 1, when=ANY_TIME),
    *ALERT_PARAMETERS,
    *NOTE_PARAMETERS,
    *SESSION_PARAMETERS,
)  # fmt: skip


class LoadError(EngineError):
    """Loading failed in the engine's thread."""

    def __init__(self, reason: str, remedy: str, may_pass: bool = False):
        super().__init__(f'{reason} {remedy}')
        self.reason, self.remedy, self.may_pass = reason, remedy, may_pass


class Loader:
    """Loads the session of one engine, in its thread.

    `group`: a RobotGroup whose robots have their windows in one context, over one model.
    """

    def __init__(self, options, checked, budget: MemoryBudget, log, recall=None, group=None):
        self._options, self._checked, self._budget = options, checked, budget
        self._log, self._recall, self._group = log, recall, group

    def load(self, leaving: list, on_progress, abort) -> Session:
        """Return the session, loaded or over what other robots have loaded.

        `leaving` holds the engine before, if there was one: two models at a time may not fit into
        memory, so its end is waited for.
        """
        waits = bool(leaving)
        while leaving:
            if leaving[0].close(timeout_s=5.0):
                leaving.clear()
            else:
                self._log.warning('the model before has not ended yet; loading waits for it')
        options = self._options
        model = self._checked.result()
        layout = find_layout(model.family, options.prompt)
        session_is = session_options(options, model.speech(options.speech))
        session_is = replace(session_is, recall=self._recall)
        shared = self._group.shared_context() if self._group is not None else None
        if shared is not None:
            return Session(shared.model, layout, options=session_is, shared=shared)
        if waits or self._group is not None:
            self._budget.require_llm(model)
        session = self._load_model(model, layout, session_is, on_progress, abort)
        if self._group is not None:
            self._group.note_session(session)
        self._log.info(attention_told(session.context))
        return session

    def _load_model(self, model, layout, session_is, on_progress, abort) -> Session:
        options = self._options
        if warning := FAMILIES[model.family].long_context_warning(options.n_ctx):
            self._log.warning(warning)
        if options.use_mlock and (refusal := lock_refusal(model.headers['llm'].size_bytes)):
            self._log.warning(refusal)
        gpu_layers = 0 if options.device == 'cpu' else options.gpu_layers
        return Session.load(
            model.llm_path,
            layout,
            ModelOptions(
                gpu_layers,
                options.device,
                options.rpc_servers,
                use_mmap=options.use_mmap,
                use_mlock=options.use_mlock,
                repack=options.repack,
                pre_tokenizer=model.manifest.pre_tokenizer,
            ),
            ContextOptions(
                n_ctx=options.n_ctx,
                n_windows=len(self._group.namespaces) if self._group is not None else 1,
                n_batch=options.n_ubatch,
                kv_type=options.kv_type,
                attention=options.attention,
                threads=thread_count(options.threads),
                offload_kv=options.device != 'cpu',
            ),
            session_is,
            on_progress,
            abort,
        )


def attention_told(context: Context) -> str:
    """Return a sentence: which kind of attention is computed, and by which rule."""
    options = context.options
    how = 'fused' if context.is_fused else 'plain'
    if options.attention != 'auto':
        told = f'as attention says; auto chooses by device and kv_type ({options.kv_type})'
    elif not context.is_fused:
        told = 'fused attention is inexact on a CPU where keys and values are not quantised'
    elif context.model.on_gpu:
        told = 'the language model is on a GPU'
    else:
        told = f'kv_type {options.kv_type} needs it'
    return f'attention is {how}: {told}'


def lock_refusal(size_bytes: int) -> str:
    """Return why so much memory cannot be locked, or ''; llama.cpp then goes on unlocked."""
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if limit == resource.RLIM_INFINITY or limit >= size_bytes:
        return ''
    return (
        f'use_mlock is true, but this process may lock {limit / 2**20:.1f} MiB, the weights have '
        f'{size_bytes / 2**20:.0f}: they can be paged out. Raise the limit (ulimit -l unlimited, '
        'or LimitMEMLOCK=infinity of the service)'
    )


def session_options(options, speech: bool) -> SessionOptions:
    """Return what the parameters say about questions and answers; `speech` as it was decided."""
    return SessionOptions(
        max_tokens=options.max_tokens,
        max_question_tokens=options.max_question_tokens,
        max_forks=options.max_parallel + min(ALERTS_TOGETHER, options.alerts_max_rules),
        window_policy=options.window_policy,
        still=options.window_still,
        speech=speech,
        system_text=options.system_text,
        sampling=sampling_options(options),
    )


def sampling_options(options) -> SamplingOptions:
    """Return the sampling options set by the parameters, which may change at any time."""
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
