# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Which parameter to lower, and by how much, where a plan does not fit into memory."""

from dataclasses import dataclass, replace

from minicpmo_ros.errors import Error
from minicpmo_ros.models.directory import ModelDirectory
from minicpmo_ros.models.llm_forecast import layers_on_gpu
from minicpmo_ros.models.llm_memory import CELLS_MULTIPLE, LlmFacts
from minicpmo_ros.models.plan import Plan, PlanOptions, forecast, quantized_savings

SMALLEST_N_CTX = 1024  # the prompt, a few seconds, a question and its answer
SMALL_BATCH = 128  # fewer rows at once gain little
WORTH_MIB = 1.0  # what saves less is not told
PARAMETERS = {'max_tiles': 'vision.max_tiles'}  # where an option has not the parameter's name
FILES = {'llm_precision': 'llm', 'vision_precision': 'vision', 'audio_precision': 'audio'}


@dataclass(frozen=True)
class Limits:
    """What may be taken, MiB."""

    host_mib: float
    device_mib: float | None = None  # of a card with memory of its own; None: it shares the host's

    def needed_mib(self, plan: Plan) -> float:
        """Give what a plan takes of the machine's memory."""
        return plan.total_mib if self.device_mib is None else plan.host_mib

    def excess_mib(self, plan: Plan) -> float:
        """Give by how much a plan is too large; zero or less where it fits."""
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
        """Give it in words."""
        saved = f'saves {self.saved_mib:.0f} MiB'
        if self.option in FILES:
            return f'{FILES[self.option]}.gguf in {self.after} (minicpmo quantize) {saved}'
        before, after = (
            str(value).lower() if isinstance(value, bool) else value
            for value in (self.before, self.after)
        )
        return f'{PARAMETERS.get(self.option, self.option)} from {before} to {after} {saved}'


def require_fit(model: ModelDirectory, plan: Plan, limits: Limits) -> None:
    """Raise DoesNotFitError, with what to lower, where the plan is larger than the limits."""
    if limits.excess_mib(plan) > 0:
        alone, combined = each_alone(model, plan, limits), together(model, plan, limits)
        raise DoesNotFitError(plan, limits, alone, combined)


def each_alone(model: ModelDirectory, plan: Plan, limits: Limits) -> list:
    """Give every change that helps, by itself, as far as it is needed."""
    changes = [
        _lowered(model, plan, limits, option, values)[0]
        for option, values in _steps(model, plan.options).items()
    ]
    return [change for change in changes if change is not None]


def together(model: ModelDirectory, plan: Plan, limits: Limits) -> list:
    """Give changes one upon the other, cheapest for the answers first, until it fits, or all."""
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
    """Give the lower values of every option, in the order of what they cost."""
    sizes = range(options.n_ctx // CELLS_MULTIPLE * CELLS_MULTIPLE, 0, -CELLS_MULTIPLE)
    steps = {
        'repack': [False] if options.repack else [],
        'n_ubatch': [n for n in (SMALL_BATCH,) if n < options.n_ubatch],
        'kv_type': {'f32': ['f16', 'q8_0'], 'f16': ['q8_0']}.get(options.kv_type, []),
        'max_tiles': range(options.max_tiles - 1, 0, -1),
        'vision_precision': _precisions(model, options, 'vision', ('q8_0', 'q4_0')),
        'audio_precision': _precisions(model, options, 'audio', ('q8_0', 'q4_0')),
        'n_ctx': [n for n in sizes if SMALLEST_N_CTX <= n < options.n_ctx],
        'llm_precision': _precisions(model, options, 'llm', ('q8_0', 'q4_K')),
    }
    if options.gpu_layers != 0:
        facts = LlmFacts.of(model.headers['llm'])
        most = layers_on_gpu(facts, options.gpu_layers)
        steps['gpu_layers'] = range(most - 1, -1, -1)  # helps where the card has its own memory
    return steps


def _precisions(model, options: PlanOptions, role: str, names: tuple) -> list:
    """Give those that make the file smaller than it is, or is planned to be."""
    header, planned = model.headers[role], getattr(options, f'{role}_precision')
    already = quantized_savings(header, role, planned)
    enough = already + 0.05 * header.size_bytes
    return [name for name in names if quantized_savings(header, role, name) > enough]


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
