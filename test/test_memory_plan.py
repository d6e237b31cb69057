# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Forecasts of memory: what is planned is what ggml and llama.cpp take; what is too large says."""

import re
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import llama_cpp.llama_cpp as llama
import numpy as np
import pytest

from minicpmo_ros.config import ALERTS_TOGETHER
from minicpmo_ros.encoders.siglip.encoder import VisionEncoder, vision_memory
from minicpmo_ros.encoders.whisper.encoder import AudioEncoder, audio_memory
from minicpmo_ros.errors import InputError
from minicpmo_ros.families.minicpm_o_2_6 import ENGLISH
from minicpmo_ros.ggml.gguf_file import read_header
from minicpmo_ros.ggml.library import GgmlType, set_log
from minicpmo_ros.ggml.runtime import AsGpu, Backend, DescribedTensors
from minicpmo_ros.live.session import Session
from minicpmo_ros.live.session_options import SessionOptions
from minicpmo_ros.llm.context import FUSED, PLAIN
from minicpmo_ros.llm.context_options import KV_TYPES, cells
from minicpmo_ros.memory import llm_formulas
from minicpmo_ros.memory import plan as plan_module
from minicpmo_ros.memory.limits import DoesNotFitError, Limits, require_fit
from minicpmo_ros.memory.llm_formulas import LlmSizes
from minicpmo_ros.memory.plan import (
    RANGES,
    SOURCES,
    PlanOptions,
    forecast,
    plan_options,
    read_parameters,
)
from minicpmo_ros.modelset.directory import ModelDirectory
from minicpmo_ros.ros.audio_node import StreamingEncoder
from minicpmo_ros.ros.image_node import VisionNode
from minicpmo_ros.ros.llm_options import PARAMETERS
from minicpmo_ros.streams.audio import Handover, RollingEncoder
from minicpmo_ros.streams.pairing import Unit
from minicpmo_ros.synthetic.model import write_model
from minicpmo_ros.units import MIB

ROOT = Path(__file__).parents[1]
PRESETS = sorted((ROOT / 'config').glob('*.yaml'))
ON_CPU = PlanOptions(device='cpu', vision_device='cpu', audio_device='cpu')
ON_GPU = PlanOptions(device='gpu', vision_device='gpu', audio_device='gpu')


@pytest.fixture(scope='module')
def true_size(tmp_path_factory):
    """Give the headers of a MiniCPM-o 2.6 with a vision file in f16 and nothing behind them."""
    directory = tmp_path_factory.mktemp('plan') / '2.6'
    return ModelDirectory.open(write_model(directory, '2.6', None, 'q4_K', 'f16', 'q4_0'))


@pytest.mark.parametrize('precision', ['f16', 'q4_0'])
def test_what_the_encoders_take_is_what_was_planned(tmp_path, precision):
    write_model(tmp_path, 'tiny', 1, 'f16', precision, precision, hashes=False)
    audio, vision = read_header(tmp_path / 'audio.gguf'), read_header(tmp_path / 'vision.gguf')
    with closing(Backend('cpu')) as backend:
        planned = audio_memory(audio, backend, (None, 5))
        encoder = AudioEncoder.load(audio, backend)
        streams = [encoder.stream(), encoder.stream(max_seconds=5)]
        assert encoder.weights.size_bytes == planned.weights
        assert sum(s.size_bytes for s in streams) == planned.cache + planned.compute
        for tiles in (1, 3):
            planned = vision_memory(vision, backend, tiles)
            seen = VisionEncoder.load(vision.path, backend, max_tiles=tiles)
            assert (seen.weight_bytes, seen.compute_bytes) == (planned.weights, planned.compute)
        small = vision_memory(vision, backend, area=0.4)
        seen = VisionEncoder.load(vision.path, backend, area=0.4)
        assert seen.compute_bytes == small.compute < 0.6 * planned.compute


@pytest.mark.parametrize('isolated', [False, True])
def test_the_plan_is_of_the_streams_that_ears_have(tiny_model_dir, isolated):
    plan = forecast(ModelDirectory.open(tiny_model_dir), replace(ON_CPU, isolated=isolated))
    with closing(Backend('cpu')) as backend:
        encoder = AudioEncoder.load(tiny_model_dir / 'audio.gguf', backend)
        rolling = RollingEncoder(encoder, isolated, Handover())
        computing = sum(stream.graphs.size_bytes for stream in rolling.streams)
        caches = sum(stream.caches.size_bytes for stream in rolling.streams)
    assert plan.amount('audio', 'keys and values').host == caches
    assert 0 <= plan.amount('audio', 'computing').host - computing < MIB


def test_the_plan_is_of_the_context_that_a_session_opens(tiny_model_dir):
    options = SessionOptions(max_forks=PlanOptions().max_parallel + ALERTS_TOGETHER)
    path = tiny_model_dir / 'llm.gguf'
    with closing(Session.load(path, ENGLISH, options=options)) as session:
        plan = forecast(ModelDirectory.open(tiny_model_dir), ON_CPU)
        logits_bytes = 4 * session.model.vocabulary.size * session.context.options.n_sequences
        assert plan.amount('llm', 'output').host == logits_bytes
        facts = LlmSizes.of(read_header(tiny_model_dir / 'llm.gguf'))
        assert session.context.n_ctx == cells(session.context.options.n_ctx)
        assert facts.context_length == session.model.context_length


def test_what_a_gpu_would_take_is_planned_without_one(tiny_model_dir):
    header = read_header(tiny_model_dir / 'audio.gguf')
    with closing(AsGpu()) as gpu, closing(Backend('cpu')) as cpu:
        planned = audio_memory(header, gpu)
        encoder = AudioEncoder.load(header, cpu, attention='flash', fixed_graph=True)
        assert encoder.weights.size_bytes == planned.weights
        assert encoder.stream().size_bytes == planned.cache + planned.compute


def test_tensors_that_are_only_described_cannot_be_touched():
    with closing(Backend('cpu')) as backend:
        tensors = DescribedTensors(backend, {'w': ((1 << 20, 1 << 16), GgmlType.F32)})
        assert tensors.size_bytes == 1 << 38
        with pytest.raises(ValueError, match='with memory'):
            tensors['w'].read()
        with pytest.raises(ValueError, match='with memory'):
            tensors['w'].write(None)


class DryRun:
    """llama.cpp's own plan: a model and contexts without memory, and what it logs of them."""

    def __init__(self, path):
        parameters = llama.llama_model_default_params()
        parameters.no_alloc, parameters.load_mode = True, 0
        parameters.n_gpu_layers, parameters.use_extra_bufts = 0, False
        llama.llama_backend_init()
        self.model = llama.llama_model_load_from_file(str(path).encode(), parameters)

    def context(self, n_ctx: int, n_ubatch: int, kv_type: str, attention=FUSED) -> dict:
        """Give MiB of the cache, of the output and of computing."""
        parameters = llama.llama_context_default_params()
        parameters.n_ctx, parameters.n_batch, parameters.n_ubatch = n_ctx, n_ubatch, n_ubatch
        parameters.n_seq_max, parameters.n_outputs_max = 2, 8
        parameters.kv_unified, parameters.flash_attn_type = True, attention
        parameters.type_k = parameters.type_v = KV_TYPES[kv_type]
        lines = []
        set_log(lambda _, text: lines.append(text))
        try:
            llama.llama_free(llama.llama_init_from_model(self.model, parameters))
        finally:
            set_log(None)
        text = '\n'.join(lines)
        patterns = {
            'kv': r'llama_kv_cache: size = +([\d.]+)',
            'output': r'output buffer size = +([\d.]+)',
            'compute': r'compute buffer size = +([\d.]+)',
        }
        return {name: float(re.search(rule, text)[1]) for name, rule in patterns.items()}

    def close(self):
        llama.llama_model_free(self.model)


@pytest.mark.parametrize('shape', ['small', '2.6', 'tiny-4.5', '4.5'])
def test_a_language_model_takes_what_llama_cpp_plans(tmp_path, shape):
    write_model(tmp_path, shape, None, 'q4_K', hashes=False)
    header = read_header(tmp_path / 'llm.gguf')
    facts = LlmSizes.of(header)
    with closing(DryRun(header.path)) as dry:
        weights = llm_formulas.weights(header, facts, 0, mapped=False)
        assert weights.host == llama.llama_model_size(dry.model)
        for n_ctx, n_ubatch, kv_type, attention in (
            (4096, 128, 'f16', FUSED),
            (8000, 512, 'f16', FUSED),
            (8192, 128, 'q8_0', FUSED),
            (2048, 256, 'q8_0', FUSED),
            (4096, 128, 'f16', PLAIN),
            (8000, 512, 'f16', PLAIN),
            (1024, 64, 'f16', PLAIN),
        ):
            found = dry.context(n_ctx, n_ubatch, kv_type, attention)
            kv = llm_formulas.keys_and_values(facts, n_ctx, kv_type, 0).host / MIB
            assert kv == pytest.approx(found['kv'], abs=0.006)
            assert llm_formulas.output(facts, 2) / MIB == pytest.approx(found['output'], abs=0.006)
            computing = llm_formulas.compute(facts, n_ctx, n_ubatch, 8, attention == FUSED) / MIB
            assert found['compute'] - 0.1 < computing < 1.09 * found['compute'] + 1.0


def test_a_header_alone_tells_it(tmp_path):
    plans = []
    for name, seed in (('full', 1), ('hollow', None)):
        write_model(tmp_path / name, 'tiny', seed, hashes=False)
        plans.append(forecast(ModelDirectory.open(tmp_path / name), ON_CPU))
    full, hollow = (plan.amounts for plan in plans)
    assert [(each.part, each.what) for each in full] == [(e.part, e.what) for e in hollow]
    for one, other in zip(full, hollow):  # which has a key more in its header
        assert other.host == pytest.approx(one.host, abs=256) and other.device == one.device


def test_a_plan_costs_less_than_opening_the_model_directory(true_size):
    def cpu_s(function, *arguments) -> float:
        begun_s = time.process_time()
        function(*arguments)
        return time.process_time() - begun_s

    pairs = [
        (cpu_s(ModelDirectory.open, true_size.path), cpu_s(forecast, true_size, ON_CPU))
        for _ in range(5)
    ]
    opened_s, planned_s = map(min, zip(*pairs))
    assert planned_s < opened_s  # 0.43 of it was measured


def test_layers_move_to_the_gpu_one_by_one(true_size):
    plans = [forecast(true_size, replace(ON_GPU, gpu_layers=n)) for n in (0, 1, 15, 29, -1)]
    # The first layer that goes there is the output, which has no keys.
    caches = [plan.amount('llm', 'keys and values') for plan in plans]
    assert [cache.device / MIB for cache in caches] == [
        0,
        0,
        14 * 8,
        224,
        224,
    ]  # the 1st is output
    assert all(cache.host + cache.device == 224 * MIB for cache in caches)
    for fewer, more in zip(plans, plans[1:4]):
        assert fewer.host_mib > more.host_mib and fewer.device_mib < more.device_mib
    assert plans[3].amounts == plans[4].amounts
    table = true_size.headers['llm'].tensors['token_embd.weight'].n_bytes
    assert 0 < plans[4].amount('llm', 'weights').host - table < 8 * MIB
    assert forecast(true_size, ON_CPU).device_mib == 0


def test_auto_is_where_the_model_will_run(tiny_model_dir, monkeypatch):
    model = ModelDirectory.open(tiny_model_dir)
    for found, meant in ((True, ON_GPU), (False, ON_CPU)):
        monkeypatch.setattr(plan_module, 'gpu_name', lambda found=found: found)
        assert forecast(model).amounts == forecast(model, meant).amounts


def test_weights_that_are_held_twice_are_counted_twice(true_size):
    once = forecast(true_size, replace(ON_CPU, repack=True, use_mmap=False))
    twice = forecast(true_size, replace(ON_CPU, repack=True))
    assert once.amount('llm', 'repacked weights').host == 0
    assert twice.amount('llm', 'repacked weights').host > 2900 * MIB  # as llama.cpp logs it: 2977
    assert forecast(true_size, ON_CPU).amount('llm', 'repacked weights').host == 0


def test_what_is_known_is_not_planned_anew_and_stays_the_same(true_size):
    known = forecast(true_size, ON_CPU)
    for change in (
        {'n_ctx': 8192},
        {'max_tiles': 2},
        {'area': 0.4, 'look_tiles': 0},
        {'isolated': True},
        {'audio_device': 'gpu'},
    ):
        options = replace(ON_CPU, **change)
        assert forecast(true_size, options, known).amounts == forecast(true_size, options).amounts


@pytest.mark.parametrize('limit_mib', [6550, 6300, 5950, 4000])
def test_a_refusal_names_what_makes_it_fit(true_size, limit_mib):
    plan, limits = forecast(true_size, replace(ON_CPU, n_ctx=8192)), Limits(limit_mib)
    if limits.excess_mib(plan) <= 0:
        return require_fit(true_size, plan, limits)
    with pytest.raises(DoesNotFitError) as caught:
        require_fit(true_size, plan, limits)
    error = caught.value
    assert f'{plan.total_mib:.0f} MiB are needed, {limit_mib} MiB' in str(error)
    for change in error.alone:
        lower = forecast(true_size, replace(plan.options, **{change.option: change.after}))
        assert (limits.excess_mib(lower) <= 0) == change.suffices
        assert plan.total_mib - lower.total_mib == pytest.approx(change.saved_mib)
        if change.option == 'n_ctx' and change.suffices:  # and by no more than is needed
            more = replace(plan.options, n_ctx=change.after + 256)
            assert limits.excess_mib(forecast(true_size, more)) > 0
    options = plan.options
    for change in error.together:
        options = replace(options, **{change.option: change.after})
    fits = limits.excess_mib(forecast(true_size, options)) <= 0
    assert fits == (limit_mib > 5000) == ('Nothing' not in str(error))
    if limit_mib == 6300:
        assert re.search(r'kv_type from f16 to q8_0 saves (29\d|30\d|28\d) MiB', str(error))
        assert re.search(r'vision.gguf in q8_0 \(minicpmo quantize\) saves \d+ MiB', str(error))


def test_a_card_with_memory_of_its_own_is_held_to_that(true_size):
    plan = forecast(true_size, ON_GPU)
    assert Limits(plan.total_mib).excess_mib(plan) <= 0
    limits = Limits(64000, plan.device_mib - 1000)
    with pytest.raises(DoesNotFitError, match='gpu_layers from -1 to') as caught:
        require_fit(true_size, plan, limits)
    assert {change.option for change in caught.value.alone} >= {'gpu_layers', 'n_ctx'}


def test_whatever_number_of_layers_fits_both_memories_is_found(true_size):
    plan = forecast(true_size, replace(ON_CPU, device='gpu', n_ctx=1024))
    split = {
        n: forecast(true_size, replace(plan.options, gpu_layers=n), plan)
        for n in range(29, -1, -1)
    }
    limits = Limits(split[21].host_mib, split[26].device_mib)  # fewer: the first; more: the second
    assert [n for n in split if limits.excess_mib(split[n]) <= 0] == [26, 25, 24, 23, 22, 21]
    with pytest.raises(DoesNotFitError, match='gpu_layers from -1 to 26 saves'):
        require_fit(true_size, plan, limits)


def test_more_positions_than_the_model_has_are_refused_as_the_node_refuses_them(tiny_model_dir):
    model = ModelDirectory.open(tiny_model_dir)
    longest = LlmSizes.of(model.headers['llm']).context_length
    forecast(model, replace(ON_CPU, n_ctx=longest))
    with pytest.raises(
        InputError, match=f'n_ctx is {longest + 1}, this model allows 1 to {longest}'
    ):
        forecast(model, replace(ON_CPU, n_ctx=longest + 1))


def test_the_defaults_are_those_of_the_nodes():
    nodes = {
        'llm': PARAMETERS,
        'vision_encoder': VisionNode.PARAMETERS,
        'streaming_encoder': StreamingEncoder.PARAMETERS,
    }
    defaults = {node: {row.name: row.default for row in rows} for node, rows in nodes.items()}
    assert plan_options(defaults) == PlanOptions()
    assert all(name in defaults[node] for node, name in SOURCES.values())
    assert PlanOptions().overlap_s == Handover().overlap_s


def test_the_plan_allows_what_the_nodes_allow():
    rows = {row.name: row for row in (*PARAMETERS, *VisionNode.PARAMETERS)}
    for name, allowed in RANGES.items():
        assert allowed == (rows[name].minimum, rows[name].maximum), name
        node = 'vision_encoder' if name.startswith('vision.') else 'llm'
        most = type(rows[name].default)(allowed[1])
        plan_options({node: {name: most}})
        with pytest.raises(InputError, match='are allowed'):
            plan_options({node: {name: most + 1}})


def test_parameters_come_from_a_file_as_ros_reads_it(tmp_path):
    path = tmp_path / 'mine.yaml'
    path.write_text(
        '/**:\n  ros__parameters:\n    device: cpu\n'
        '/**/llm:\n  ros__parameters:\n    n_ctx: 8192\n    kv_type: q8_0\n'
        'vision_encoder:\n  ros__parameters:\n    vision.max_tiles: 3\n    device: gpu\n'
    )
    options = plan_options(read_parameters(path))
    assert options == replace(ON_CPU, n_ctx=8192, kv_type='q8_0', max_tiles=3, vision_device='gpu')
    for text in ('nonsense', '[1, 2]', '/**:\n  n_ctx: 1\n', 'a: ['):
        path.write_text(text)
        with pytest.raises(InputError, match='no file of ROS parameters'):
            read_parameters(path)
    with pytest.raises(InputError, match="n_ctx is '8192'; an int is expected"):
        plan_options({'llm': {'n_ctx': '8192'}})


# What is left for us of a machine's memory, MiB: 7.4 GiB, 15.3 and 30 are what those boards tell
# Linux of theirs, and it takes 0.8 without a desktop; a card of 12 GB also shows a screen.
MACHINES = {
    'orin_nano_8gb': (Limits(6750), 'q4_0'),
    'orin_nx_16gb': (Limits(14800), 'f16'),
    'agx_orin': (Limits(29900), 'f16'),
    'desktop_gpu': (Limits(8000, 11700), 'f16'),
    'cpu': (Limits(6750), 'q4_0'),
    'nano': (Limits(1024), None),
}


@pytest.mark.parametrize('preset', PRESETS, ids=lambda path: path.stem)
def test_a_preset_fits_its_machine(tmp_path, preset):
    limits, precision = MACHINES[preset.stem]
    directory = ROOT / 'models' / 'nano'
    if precision:
        directory = write_model(tmp_path, '2.6', None, 'q4_K', precision, precision, pad_ffn=True)
    model = ModelDirectory.open(directory)
    plan = forecast(model, plan_options(read_parameters(preset)))
    require_fit(model, plan, limits)
    told = re.search(r'minicpmo plan: ([\d.]+) GiB', preset.read_text())
    if told:  # what the file says of itself
        own = plan.device_mib if limits.device_mib else plan.total_mib
        assert own / 1024 == pytest.approx(float(told[1]), abs=0.06)


def test_memory_is_planned_for_the_sharpest_that_a_question_may_look_at(true_size):
    def computing(**given):
        plan = forecast(true_size, replace(ON_CPU, parts=('vision',), **given))
        return plan.amount('vision', 'computing').host

    whole = computing()
    assert computing(area=0.4) == whole  # questions may look at all of the area
    assert computing(area=0.4, look_tiles=0, max_tiles=2, batch=1) == whole  # tiles have all of it
    assert computing(area=0.4, look_tiles=0) < 0.5 * whole


def test_giving_up_looks_is_offered_where_it_saves_memory(true_size):
    tight = Limits(forecast(true_size, replace(ON_CPU, area=0.25)).host_mib - 5, None)
    for area, is_offered in ((0.25, True), (1.0, False)):
        plan = forecast(true_size, replace(ON_CPU, area=area))
        with pytest.raises(DoesNotFitError) as problem:
            require_fit(true_size, plan, tight)
        assert ('vision.look_tiles from 9 to 0' in str(problem.value)) is is_offered


@pytest.mark.parametrize('options', [ON_GPU, replace(ON_CPU, kv_type='q8_0')])
def test_a_second_robot_takes_its_keys_and_values(true_size, options):
    plans = [forecast(true_size, replace(options, n_robots=n)) for n in (1, 2, 4)]
    kv_mib = sum(
        (amount.host + amount.device) / MIB
        for amount in plans[0].amounts
        if (amount.part, amount.what) == ('llm', 'keys and values')
    )
    assert kv_mib > 100
    assert plans[1].total_mib - plans[0].total_mib == pytest.approx(kv_mib, rel=0.02)
    assert plans[2].total_mib - plans[0].total_mib == pytest.approx(3 * kv_mib, rel=0.02)


@pytest.mark.parametrize('names', [(), ('front', 'left'), ('front', 'left', 'arm/wrist')])
def test_a_second_takes_about_as_many_positions_as_planned(tiny_model_dir, names):
    model = ModelDirectory.open(tiny_model_dir)
    options = replace(ON_CPU, n_ctx=2048, **plan_options_of(list(names)))
    plan = forecast(model, options)
    session = Session.load(tiny_model_dir / 'llm.gguf', ENGLISH)
    n = max(1, len(names))
    queries = model.headers['vision'].get('clip.minicpmv_query_num', int)
    image = np.zeros((n * queries, session.model.width), np.float32)
    with closing(Backend('cpu')) as backend:
        encoder = AudioEncoder.load(model.headers['audio'], backend)
        audio = np.zeros((encoder.tokens_per_second, session.model.width), np.float32)
    read = len(session.unit_rows(Unit(0, image, (0, 0, *names), audio)))
    session.close()
    assert abs(plan.positions - read) <= (6 * n if names else 0)
    assert plan.window_s == 2048 // plan.positions


def plan_options_of(cameras) -> dict:
    given = plan_options({'vision_encoder': {'cameras': cameras}})
    return {'n_cameras': given.n_cameras}


def test_cameras_are_counted_by_their_names():
    for given, n in ((['front', 'left'], 2), ('front, left,', 2), ('', 1), ([''], 1), ([], 1)):
        assert plan_options({'vision_encoder': {'cameras': given}}).n_cameras == n


def test_robots_are_counted_by_their_namespaces():
    for given, n in (([''], 1), (['a', 'b'], 2), ([], 1)):
        assert plan_options({'llm': {'robots': given}}).n_robots == n
