# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Keep a model within the memory: what to lower before loading, what to give up while it runs.

Before loading: which parameter to lower, and by how much, if a plan does not fit.

While it runs, pure policy: measurements in, a verdict in words out. There are two bounds: what
this process may occupy, and what of the machine's memory must stay available. If one is passed,
the context is halved; that frees its keys and values, the only large memory that a loaded model
can do without. If the smallest context does not help, questions are refused. What was given up
comes back one step at a time, once there has been enough memory, with a margin, for several
measurements in a row. A context that was grown and soon cut again waits twice as long the next
time: beside a neighbour that comes and goes the window stays small instead of being cut each time.
Answering again costs no memory and does not wait.
"""

from dataclasses import dataclass, replace

from minicpmo_ros.errors import Error
from minicpmo_ros.llm.context_options import CELLS_MULTIPLE, cells
from minicpmo_ros.memory.llm_formulas import LlmSizes, layers_on_gpu
from minicpmo_ros.memory.plan import Plan, PlanOptions, forecast, quantized_savings
from minicpmo_ros.modelset.directory import ModelDirectory
from minicpmo_ros.units import MIB

KV_SMALLER = {'f32': ['f16', 'q8_0'], 'f16': ['q8_0']}

SMALLEST_N_CTX = 1024  # the prompt, a few seconds, a question and its answer
SMALL_BATCH = 128  # fewer rows at once gain little
WORTH_MIB = 1.0  # what saves less is not told
PARAMETERS = {
    'batch': 'vision.batch',
    'look_tiles': 'vision.look_tiles',
    'max_rules': 'alerts.max_rules',
}  # where an option has not the parameter's name
FILES = {'llm_precision': 'llm', 'vision_precision': 'vision', 'audio_precision': 'audio'}
MARGIN_MIB = 32.0  # that must be free beyond what comes back costs
CALM_LOOKS = 3
FAILED_LOOKS = 30  # before what was not to be had is tried again
SOON_LOOKS = 300  # after it was taken back: a cut is the same neighbour's
MOST_CALM_LOOKS = 450  # are waited for


@dataclass(frozen=True)
class Limits:
    """What may be taken, MiB."""

    host_mib: float
    device_mib: float | None = None  # of a card with memory of its own; None: it shares the host's

    def needed_mib(self, plan: Plan) -> float:
        """Return what a plan takes of the machine's memory."""
        return plan.total_mib if self.device_mib is None else plan.host_mib

    def excess_mib(self, plan: Plan) -> float:
        """Return by how much a plan is too large; zero or less where it fits."""
        excess_mib = self.needed_mib(plan) - self.host_mib
        if self.device_mib is not None:
            excess_mib = max(excess_mib, plan.device_mib - self.device_mib)
        return excess_mib


class DoesNotFitError(Error):
    """A plan is larger than the memory; the text, and `remedy`, say what to lower."""

    def __init__(self, plan: Plan, limits: Limits, alone: list, together: list):
        self.plan, self.limits, self.alone, self.together = plan, limits, alone, together
        self.remedy = _remedy(limits.excess_mib(plan), alone, together)
        super().__init__(f'{_problem(plan, limits)}. {self.remedy} Or end other programs.')


@dataclass(frozen=True)
class Change:
    """One parameter, or the precision of one file, set lower."""

    option: str  # of PlanOptions
    before: object
    after: object
    saved_mib: float
    suffices: bool

    def __str__(self) -> str:
        """Return it in words."""
        saved = f'saves {self.saved_mib:.0f} MiB'
        if self.option in FILES:
            return f'{FILES[self.option]}.gguf in {self.after} (minicpmo quantize) {saved}'
        before, after = (
            str(value).lower() if isinstance(value, bool) else value
            for value in (self.before, self.after)
        )
        return f'{PARAMETERS.get(self.option, self.option)} from {before} to {after} {saved}'


def kv_mib_per_position(model: ModelDirectory, options: PlanOptions, shares_memory: bool) -> float:
    """Return the MiB of this machine that the keys and values of one window's position take.

    0: all are on a GPU with memory of its own, or on an RPC server.
    shares_memory: the GPU of this machine computes in the machine's memory.
    """
    plan = forecast(model, replace(options, n_robots=1, parts=('llm',)))
    amount, is_here = plan.amount('llm', 'keys and values'), 'llm' not in options.served
    n_bytes = amount.host + (amount.device if shares_memory and is_here else 0)
    return n_bytes / cells(options.n_ctx) / MIB


def require_fit(model: ModelDirectory, plan: Plan, limits: Limits) -> None:
    """Raise DoesNotFitError, with what to lower, where the plan is larger than the limits."""
    if limits.excess_mib(plan) > 0:
        alone, combined = each_alone(model, plan, limits), together(model, plan, limits)
        raise DoesNotFitError(plan, limits, alone, combined)


def each_alone(model: ModelDirectory, plan: Plan, limits: Limits) -> list:
    """Return every change that helps, by itself, as far as it is needed."""
    changes = [
        _lowered(model, plan, limits, option, values)[0]
        for option, values in _steps(model, plan.options).items()
    ]
    return [change for change in changes if change is not None]


def together(model: ModelDirectory, plan: Plan, limits: Limits) -> list:
    """Return changes one upon the other, cheapest for the answers first, until it fits, or all."""
    made = []
    for option, values in _steps(model, plan.options).items():
        change, plan = _lowered(model, plan, limits, option, values)
        if change is not None:
            made.append(change)
            if change.suffices:
                break
    return made


def _lowered(model, plan: Plan, limits: Limits, option: str, values) -> tuple:
    """Take the first of ever lower values that suffices, or the best; (Change or None, plan)."""
    lower, value = plan, None
    for tried in values:  # one by one: a layer that leaves the GPU goes to the machine's memory
        options = replace(plan.options, **{option: tried})
        other = forecast(model, options, plan)
        if limits.excess_mib(other) < limits.excess_mib(lower):
            lower, value = other, tried
        if limits.excess_mib(lower) <= 0:
            break
    excess_mib = limits.excess_mib(lower)
    saved_mib = limits.excess_mib(plan) - excess_mib
    if saved_mib < WORTH_MIB:
        return None, plan
    before = getattr(plan.options, option)
    return Change(option, before, value, saved_mib, excess_mib <= 0), lower


def _steps(model: ModelDirectory, options: PlanOptions) -> dict:
    """Return the lower values of every option, in the order of what they cost."""
    sizes = range(options.n_ctx // CELLS_MULTIPLE * CELLS_MULTIPLE, 0, -CELLS_MULTIPLE)
    steps = {
        'repack': [False] if options.repack else [],
        'n_ubatch': [n for n in (SMALL_BATCH,) if n < options.n_ubatch],
        'kv_type': [] if options.attention == 'plain' else KV_SMALLER.get(options.kv_type, []),
        'batch': range(min(options.batch, options.max_tiles) - 1, 0, -1),
        'look_tiles': [0] if options.look_tiles and options.area < 1 else [],
        'vision_precision': _precisions(model, options, 'vision', ('q8_0', 'q4_0')),
        'audio_precision': _precisions(model, options, 'audio', ('q8_0', 'q4_0')),
        'n_ctx': [n for n in sizes if SMALLEST_N_CTX <= n < options.n_ctx],
        'llm_precision': _precisions(model, options, 'llm', ('q8_0', 'q4_K')),
    }
    if options.gpu_layers != 0:
        facts = LlmSizes.of(model.headers['llm'])
        most = layers_on_gpu(facts, options.gpu_layers)
        steps['gpu_layers'] = range(most - 1, -1, -1)  # helps where the card has its own memory
    return steps


def _precisions(model, options: PlanOptions, part: str, names: tuple) -> list:
    """Return those that make the file smaller than it is, or is planned to be."""
    header, planned = model.headers[part], getattr(options, f'{part}_precision')
    already = quantized_savings(header, part, planned)
    enough = already + 0.05 * header.size_bytes
    return [name for name in names if quantized_savings(header, part, name) > enough]


def _problem(plan: Plan, limits: Limits) -> str:
    allowed = f'{limits.host_mib:.0f} MiB are to be had'
    needed = f'{plan.total_mib:.0f} MiB are needed'
    if limits.device_mib is not None:
        needed = f'{plan.host_mib:.0f} MiB and {plan.device_mib:.0f} MiB of the GPU are needed'
        allowed = f'{limits.host_mib:.0f} and {limits.device_mib:.0f} are to be had'
    return f'{needed}, {allowed}: {limits.excess_mib(plan):.0f} MiB too many'


def _remedy(excess_mib: float, alone: list, together: list) -> str:
    enough = '; '.join(str(change) for change in alone if change.suffices)
    combined = '; '.join(map(str, together))
    if enough:
        return f'Any one of these is enough: {enough}.'
    if together and together[-1].suffices:
        return f'These together are enough: {combined}.'
    left_mib = excess_mib - sum(change.saved_mib for change in together)
    tried = f', even with all of these: {combined}' if combined else ''
    return (
        f'Nothing that can be set makes it fit; {left_mib:.0f} MiB are too many{tried}. '
        'Take a smaller model.'
    )


@dataclass(frozen=True)
class MemoryBounds:
    """0: no such bound."""

    limit_mib: float = 0.0  # of what this process occupies
    reserve_mib: float = 0.0  # of the machine's memory, must stay available


@dataclass(frozen=True)
class Verdict:
    """What there shall be; the reason is '' where nothing is given up."""

    n_ctx: int
    refuses: bool = False
    reason: str = ''
    remedy: str = ''


def context_sizes(n_ctx: int, smallest: int) -> tuple:
    """Return the sizes a context may have, largest first: halves, rounded as llama.cpp does."""
    sizes = [n_ctx]
    while cells(sizes[-1] / 2) >= smallest and cells(sizes[-1] / 2) < sizes[-1]:
        sizes.append(cells(sizes[-1] / 2))
    return tuple(sizes)


class MemoryGuard:
    """Looks at figures in turn; each must be newer than the last verdict's effect."""

    def __init__(self, sizes: tuple, mib_per_position: float):
        self._sizes, self._mib_per_position = sizes, mib_per_position
        self._step, self._refuses = 0, False
        self._calm = 0  # looks with room for the next step, since the last change
        self._free = 0  # such looks on end, over several steps
        self._patience = CALM_LOOKS  # of them before the context grows
        self._looks, self._grown_at = 0, None  # the look when it grew, until it is cut

    def settle(self, n_ctx: int) -> None:
        """Take note of the size the context has become; another than decided was not to be had."""
        if n_ctx != self._sizes[self._step]:
            self._step = self._sizes.index(n_ctx)
            self._calm = -FAILED_LOOKS

    def look(self, used_mib: float, available_mib: float, bounds: MemoryBounds) -> Verdict:
        """Decide by what the process occupies and what the machine has available."""
        spare_mib, why = _spare(used_mib, available_mib, bounds)
        self._looks += 1
        if spare_mib < 0:
            self._calm = self._free = 0
            self._give_up(-spare_mib)
        elif spare_mib < self._cost_mib() + MARGIN_MIB:
            self._calm = self._free = 0
        else:
            self._calm, self._free = self._calm + 1, self._free + 1
            waited = self._refuses or self._free >= self._patience
            if self._calm >= CALM_LOOKS and waited:
                self._calm = 0
                self._take_back()
        return self._verdict(why)

    def _give_up(self, short_mib: float) -> None:
        if self._step == len(self._sizes) - 1:
            self._refuses = True
            return
        if self._grown_at is not None:
            soon = self._looks - self._grown_at <= SOON_LOOKS
            self._patience = min(2 * self._patience, MOST_CALM_LOOKS) if soon else CALM_LOOKS
            self._grown_at = None
        size = self._sizes[self._step]
        while self._step < len(self._sizes) - 1:
            self._step += 1
            if (size - self._sizes[self._step]) * self._mib_per_position >= short_mib:
                break

    def _take_back(self) -> None:
        if self._refuses:
            self._refuses = False
        elif self._step:
            self._step -= 1
            self._grown_at = self._looks

    def _cost_mib(self) -> float:
        """Return what the next step back takes."""
        if self._refuses or not self._step:
            return 0.0
        more = self._sizes[self._step - 1] - self._sizes[self._step]
        return more * self._mib_per_position

    def _verdict(self, why: str) -> Verdict:
        n_ctx, full = self._sizes[self._step], self._sizes[0]
        if not self._step and not self._refuses:
            return Verdict(n_ctx)
        reason = f'Memory is short: {why}.'
        if self._step:
            reason += f' The window has {n_ctx} of {full} positions, older seconds were let go.'
        if self._refuses:
            reason += ' Questions are refused until there is more.'
        return Verdict(
            n_ctx,
            self._refuses,
            reason,
            'End other programs, use smaller files or kv_type q8_0, lower n_ctx, or change '
            'memory_limit_mib or memory_reserve_mib.',
        )


def _spare(used_mib: float, available_mib: float, bounds: MemoryBounds) -> tuple:
    """Return (MiB up to the nearer bound, a sentence about it); negative: it is passed."""
    spares = [(float('inf'), 'nothing bounds it now')]
    if bounds.limit_mib:
        spares.append(
            (
                bounds.limit_mib - used_mib,
                f'this process occupies {used_mib:.0f} MiB, memory_limit_mib allows '
                f'{bounds.limit_mib:.0f}',
            )
        )
    if bounds.reserve_mib:
        spares.append(
            (
                available_mib - bounds.reserve_mib,
                f'{available_mib:.0f} MiB are available on this machine, memory_reserve_mib '
                f'leaves {bounds.reserve_mib:.0f} alone',
            )
        )
    return min(spares)
