# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Files of quantisation rules: read as written, and refused with the line that is wrong."""

from pathlib import Path

import pytest

from minicpmo_ros.cli import main as cli
from minicpmo_ros.errors import InputError
from minicpmo_ros.ggml.gguf_file import read_header
from minicpmo_ros.ggml.types import GgmlType as Type
from minicpmo_ros.modelset.directory import ModelDirectory
from minicpmo_ros.quantize.rules import FORMAT, Rule, RulesFile

EXAMPLE = Path(__file__).parents[1] / 'docs' / 'quantization_rules.yaml'
HEAD = f'format: {FORMAT}\n'


def test_what_is_written_is_read_again(tmp_path):
    rules = RulesFile(
        {'llm': 'q4_K', 'audio': 'keep'},
        (
            Rule('blk.*.attn_v.weight', Type.Q6_K, 'llm'),
            Rule('*', None, 'llm'),
            Rule('*.mlp.0.weight', Type.Q4_1, 'audio'),
        ),
    )
    rules.write(tmp_path / 'a.yaml')
    assert RulesFile.read(tmp_path / 'a.yaml') == rules
    RulesFile.read(tmp_path / 'a.yaml').write(tmp_path / 'b.yaml')
    assert (tmp_path / 'a.yaml').read_bytes() == (tmp_path / 'b.yaml').read_bytes()


@pytest.mark.parametrize('text, line, problem', [
    ('llm:\n  type: q3\n', 'line 3 (type: q3)', "'q3' is unknown; allowed are f32"),
    ('llm:\n  rules:\n  - blk.*.x.weight: q9\n', 'line 4 (- blk.*.x.weight: q9)', 'unknown'),
    ('llm:\n  rules:\n  - blk.weight\n', 'line 4 (- blk.weight)', 'a rule must be'),
    ('llm:\n  rules:\n  - a: f16\n    b: f16\n', 'line 4 (- a: f16)', 'PATTERN: TYPE'),
    ('llm:\n  rules: q8_0\n', 'line 3 (rules: q8_0)', 'rules are a list'),
    ('llm:\n  rules:\n  - *.attn_v.weight: q8_0\n', 'line 4 (- *.attn_v', 'need quotes'),
    ('llm:\n  types: q8_0\n', 'line 3 (types: q8_0)', "'types' is neither"),
    ('ears:\n  type: q8_0\n', 'line 3 (type: q8_0)', "'ears' is none of llm"),
    ('llm: q8_0\n', 'line 2 (llm: q8_0)', "llm must be 'KEY: VALUE'"),
    ('llm:\n  type: f16\nllm:\n  type: f16\n', 'line 4 (llm:)', "'llm' occurs twice"),
    ('llm: [\n', 'line 3 ()', 'not YAML'),
])  # fmt: skip
def test_a_refusal_shows_the_line(tmp_path, text, line, problem):
    path = tmp_path / 'rules.yaml'
    path.write_text(HEAD + text)
    with pytest.raises(InputError) as caught:
        RulesFile.read(path)
    assert f'{path}, {line}' in str(caught.value) and problem in str(caught.value)


@pytest.mark.parametrize('content, problem', [
    (b'llm:\n  type: f16\n', 'its format is None'),
    (b'format: other\n', "its format is 'other'"),
    (b'', 'empty'), (b'\xff\xfe\xff', 'not YAML'), (b'#' * (1 << 21), 'larger than 1 MiB'),
])  # fmt: skip
def test_other_files_are_refused(tmp_path, content, problem):
    path = tmp_path / 'rules.yaml'
    path.write_bytes(content)
    with pytest.raises(InputError, match=problem):
        RulesFile.read(path)
    with pytest.raises(InputError, match='cannot be read'):
        RulesFile.read(tmp_path / 'none.yaml')


def quantize(*arguments) -> int:
    return cli.main(['quantize', *map(str, arguments)])


def types(path) -> dict:
    return {name: info.type for name, info in read_header(path).tensors.items()}


def test_the_example_fits_a_model(tiny_model_dir, tmp_path):
    assert quantize(tiny_model_dir, tmp_path / 'm', '--rules', EXAMPLE) == 0
    found = types(tmp_path / 'm' / 'llm.gguf')
    assert found['blk.0.attn_v.weight'] == Type.Q6_K
    assert found['blk.1.attn_q.weight'] == Type.Q4_1
    assert found['blk.0.attn_k.weight'] == Type.Q4_K
    found = types(tmp_path / 'm' / 'vision.gguf')
    assert found['v.blk.0.attn_out.weight'] == Type.Q5_1
    assert found['v.blk.0.attn_q.weight'] == Type.Q8_0


def test_the_command_line_comes_before_the_file(tiny_model_dir, tmp_path):
    rules = tmp_path / 'rules.yaml'
    RulesFile({'llm': 'q4_0', 'vision': 'q4_0'}, (Rule('blk.*', Type.Q4_1, 'llm'),)).write(rules)
    rule = ('--rule', 'blk.0.*=q8_0', '--vision', 'q5_0')
    assert quantize(tiny_model_dir, tmp_path / 'm', '--rules', rules, *rule) == 0
    found = types(tmp_path / 'm' / 'llm.gguf')
    assert found['blk.0.attn_q.weight'] == Type.Q8_0
    assert found['blk.1.attn_q.weight'] == Type.Q4_1
    assert types(tmp_path / 'm' / 'vision.gguf')['v.blk.0.attn_q.weight'] == Type.Q5_0
    assert ModelDirectory.open(tmp_path / 'm').precision['audio'] == 'f16'


def test_written_rules_give_the_same_bytes(tiny_model_dir, tmp_path):
    rules = tmp_path / 'rules.yaml'
    quantize(tiny_model_dir, tmp_path / 'a', '--llm', 'q4_0', '--rule', 'blk.1.*=q5_1',
             '--rule', 'encoder.*=q8_0', '--rules', EXAMPLE, '--write-rules', rules)  # fmt: skip
    assert quantize(tiny_model_dir, tmp_path / 'b', '--rules', rules) == 0
    for role in ('llm', 'vision', 'audio'):
        name = f'{role}.gguf'
        assert (tmp_path / 'a' / name).read_bytes() == (tmp_path / 'b' / name).read_bytes()
    one = tmp_path / 'one.gguf'
    assert quantize(tiny_model_dir / 'llm.gguf', one, '--rules', rules) == 0
    assert one.read_bytes() == (tmp_path / 'a' / 'llm.gguf').read_bytes()


def test_a_rule_of_one_network_does_not_touch_another(tiny_model_dir, tmp_path, capsys):
    rules = tmp_path / 'rules.yaml'
    rules.write_text(HEAD + "audio:\n  rules:\n  - '*': q8_0\n")
    assert quantize(tiny_model_dir, tmp_path / 'm', '--rules', rules) == 0
    assert set(types(tmp_path / 'm' / 'llm.gguf').values()) == {Type.F32, Type.F16}
    assert Type.Q8_0 in types(tmp_path / 'm' / 'audio.gguf').values()
    rules.write_text(HEAD + 'audio:\n  rules:\n  - blk.*: q8_0\n')
    assert quantize(tiny_model_dir, tmp_path / 'n', '--rules', rules) == 2
    assert 'no matrix that fits audio blk.*' in capsys.readouterr().err
