# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""One configuration measured, and many of them as JSON and as Markdown tables.

A report is {"machine": {...}, "options": {...}, "configurations": {name: {"shape", "precision",
"unit_ms", "first_token_ms", "tokens_per_s", "pss_mib", "calibration"}}, "ratios": {shape: {name:
number or null}}, "pairs": {shape: {name: how it was measured, or why it was not}}}.
"""

from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from functools import partial

from minicpmo_ros.errors import InputError
from minicpmo_ros.evaluation.bench.bench import (
    PARTS,
    BenchOptions,
    better,
    calibrate,
    clock_for,
    memory,
    open_bench,
    question_times,
    unit_times,
)
from minicpmo_ros.evaluation.bench.ratios import (
    STREAM_SECONDS,
    WINDOW_SECONDS,
    audio_stream,
    first_token,
    one_decode,
)
from minicpmo_ros.modelset.directory import ModelDirectory
from minicpmo_ros.modelset.gguf_layouts import SHAPES

# What is held against others' programs, in benchmarks/ of the source tree; and what is aimed at.
BASELINES = ('decode_over_llama', 'vision_over_mtmd', 'audio_over_torch_30s')
AIMS = {
    'audio_stream_over_reencode_30s': ('at most', 1 / 15),
    'first_token_speedup_30s': ('at least', 20),
    'decode_over_llama': ('at most', 1.03),
    'vision_over_mtmd': ('at most', 0.9),
    'overhead_share': ('below', 0.1),
}
RATIOS = (
    'one_decode_over_five',
    *(f'audio_stream_over_reencode_{seconds}s' for seconds in STREAM_SECONDS),
    *(f'first_token_speedup_{seconds}s' for seconds in WINDOW_SECONDS),
    'overhead_share',
    *BASELINES,
)
NO_BASELINES = 'needs benchmarks/ of the source tree: make bench'


def shape_of(model: ModelDirectory) -> str:
    """Return the shape a model has, of those we know; else its width."""
    if model.model_id in SHAPES:
        return model.model_id
    llm, audio = model.headers['llm'], model.headers['audio']
    layers = llm.metadata[f'{llm.metadata["general.architecture"]}.block_count']
    vision_layers = model.headers['vision'].metadata['clip.vision.block_count']
    found = (model.family, model.width, layers, vision_layers, audio.metadata['encoder_layers'])
    for shape in SHAPES.values():
        sizes = (shape.width, shape.llm_layers, shape.vision_layers, shape.audio_layers)
        if found == (shape.family, *sizes):
            return shape.name
    return f'width {model.width}'


def measure(model: ModelDirectory, options: BenchOptions, pss_mib: Callable[[], float]) -> dict:
    """Measure one configuration; gives what its entry of a report has beside describe()."""
    with closing(open_bench(model, options)) as core:
        on_cpu = core.is_cpu
        found = {'unit_ms': unit_times(core, options), **question_times(core, options)}
    found['pss_mib'] = memory(model.path, options, pss_mib)
    found['calibration'] = calibrate(model.llm_path, options) if on_cpu else None
    return found


def describe(model: ModelDirectory) -> dict:
    """Return what is known without measuring."""
    return {'shape': shape_of(model), 'precision': model.precision}


def measure_ratios(
    model: ModelDirectory,
    options: BenchOptions,
    baselines: dict,
    only: tuple = RATIOS,
    tell: Callable[[str, object], None] = lambda name, found: None,
) -> dict:
    """Return {name: Ratio, number, or a sentence that says why there is none}.

    baselines: name of BASELINES -> function that gives a Ratio. tell: called with each.
    """
    found = {}
    with closing(open_bench(model, options)) as core:
        own = {
            'one_decode_over_five': partial(one_decode, core, options),
            'overhead_share': partial(_overhead, core, options),
        }
        for seconds in STREAM_SECONDS:
            name = f'audio_stream_over_reencode_{seconds}s'
            own[name] = partial(audio_stream, core, options, seconds)
        for seconds in WINDOW_SECONDS:
            own[f'first_token_speedup_{seconds}s'] = partial(first_token, core, options, seconds)
        for name in only:
            call = {**own, **baselines}.get(name)
            found[name] = NO_BASELINES if call is None else _tried(call)
            tell(name, found[name])
    return found


def _overhead(core, options: BenchOptions) -> float:
    unit_ms = unit_times(core, options)
    return 1 - unit_ms['compute'] / unit_ms['whole']


def _tried(call: Callable[[], object]):
    try:
        return call()
    except InputError as error:
        return str(error)


class BenchReport:
    """Grows by configurations."""

    def __init__(self, machine: dict, options: BenchOptions, command: str):
        self.data = {
            'machine': machine,
            'command': command,
            'options': asdict(options),
            'configurations': {},
            'ratios': {},
            'pairs': {},
        }

    def add(self, name: str, entry: dict, ratios: dict | None = None) -> None:
        """Take a configuration, and the ratios of its shape."""
        self.data['configurations'][name] = entry
        if ratios is None:
            return
        values, pairs = {}, {}
        for key, found in ratios.items():
            if isinstance(found, str):
                values[key], pairs[key] = None, {'not_measured': found}
            elif isinstance(found, float):
                values[key], pairs[key] = found, {'of': 'a live second of this configuration'}
            else:
                values[key], pairs[key] = found.value, asdict(found)
            pairs[key]['configuration'] = name
        self.data['ratios'][entry['shape']] = values
        self.data['pairs'][entry['shape']] = pairs

    def markdown(self) -> str:
        """Return the tables."""
        data = self.data
        parts = [_machine(data)] + ([_configurations(data)] if _measured(data) else [])
        parts += [_ratios(shape, data) for shape in data['ratios']]
        parts += [_calibrations(data)] if any(_calibrated(data)) else []
        return '\n\n'.join(parts) + '\n'


def _machine(data: dict) -> str:
    o, facts = data['options'], data['machine']
    how = 'CPU time' if _clock(data) == 'cpu' else 'time that passed'
    threads = f'{o["threads"]} thread' + ('s' if o['threads'] > 1 else '')
    rows = [*facts.items(), ('command', f'`{data["command"]}`')]
    rows.append(('measured', f'{how}, {threads}, n_ctx {o["n_ctx"]}, kv_type {o["kv_type"]}'))
    return _table(('machine', ''), rows)


def _clock(data: dict) -> str:
    return clock_for(data['options']['device'] == 'cpu', data['options']['threads'])


def _measured(data: dict) -> list:
    return [(n, e) for n, e in data['configurations'].items() if 'unit_ms' in e]


def _configurations(data: dict) -> str:
    cpu = 'CPU ' if _clock(data) == 'cpu' else ''
    head = ('configuration', *(f'{part} {cpu}ms' for part in PARTS), f'whole unit {cpu}ms')
    head += (f'first token {cpu}ms', f'tokens/{cpu}s', 'PSS weights MiB', 'PSS inference MiB')
    rows = []
    for name, entry in _measured(data):
        unit, pss = entry['unit_ms'], entry['pss_mib']
        numbers = [unit[part] for part in (*PARTS, 'whole')]
        numbers += [entry['first_token_ms'], entry['tokens_per_s']]
        numbers += [pss['weights'], pss['inference']]
        rows.append((name, *(f'{number:.1f}' for number in numbers)))
    return _table(head, rows)


def _ratios(shape: str, data: dict) -> str:
    rows = []
    for name, value in data['ratios'][shape].items():
        pair, (kind, aim) = data['pairs'][shape][name], AIMS.get(name, ('', None))
        aimed = f'{kind} {aim:.3g}' if kind else ''
        if value is None:
            rows.append((name, 'not measured', aimed, pair['not_measured']))
        elif 'one' in pair:
            told = f'{pair["one"]}: {pair["one_ms"]:.4g} ms; {pair["other"]}: '
            told += f'{pair["other_ms"]:.4g} ms; {pair["pairs"]} pairs, quartiles '
            told += f'{pair["low"]:.3g} to {pair["high"]:.3g}'
            rows.append((name, f'{value:.3g}', aimed, told))
        else:
            rows.append((name, f'{value:.3g}', aimed, pair['of']))
    of = next(iter(data['pairs'][shape].values()))['configuration']
    return f'Shape {shape} ({of})\n\n' + _table(('ratio', 'is', 'aim', 'of what'), rows)


def _calibrated(data: dict) -> list:
    return [(n, e['calibration']) for n, e in _measured(data) if e['calibration']]


def _calibrations(data: dict) -> str:
    rows = []
    for name, curves in _calibrated(data):
        best = better(curves)
        for way, curve in curves.items():
            uses = [use for use, chosen in best.items() if chosen == way]
            spent = [f'{ms:.1f}' for ms in curve.values()]
            rows.append((name, way, *spent, ' and '.join(uses)))
    counts = [f'{count} rows ms' for count in _calibrated(data)[0][1]['stored']]
    return _table(('configuration', 'weights', *counts, 'better for'), rows)


def _table(head: tuple, rows: list) -> str:
    lines = [head, ('---',) * len(head), *rows]
    return '\n'.join('| ' + ' | '.join(map(str, line)) + ' |' for line in lines)
