# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Published files come whole onto this machine, whatever ends a download on the way."""

import os
import random
import resource
import signal
import subprocess
import sys
import threading

import pytest
from hub_server import HubServer

from minicpmo_ros.cli import main as cli
from minicpmo_ros.modelset.directory import ModelDirectory
from minicpmo_ros.synthetic.model import write_model

pytest.importorskip('huggingface_hub')  # environment/requirements-fetch.txt

REPO_4_5, REPO_2_6 = 'openbmb/MiniCPM-o-4_5-gguf', 'openbmb/MiniCPM-o-2_6-gguf'
NAMES_4_5 = {
    'llm': 'MiniCPM-o-4_5-Q4_K_M.gguf',
    'vision': 'vision/MiniCPM-o-4_5-vision-F16.gguf',
    'audio': 'audio/MiniCPM-o-4_5-audio-F16.gguf',
}
LLM = NAMES_4_5['llm']
MIB = 1 << 20
# What the tensors of the published files come to, from docs/models.md.
TRUE_SIZES = {
    'MiniCPM-o-4_5-F16.gguf': 15620 * MIB,
    'MiniCPM-o-4_5-Q8_0.gguf': 8299 * MIB,
    LLM: 4788 * MIB,
    NAMES_4_5['vision']: 1044 * MIB,
    NAMES_4_5['audio']: 630 * MIB,
}


@pytest.fixture(scope='module')
def contents(tmp_path_factory):
    """Return the bytes of two tiny models by shape and part."""
    folder = tmp_path_factory.mktemp('published')
    found = {}
    for shape in ('tiny', 'tiny-4.5'):
        write_model(folder / shape, shape, 1, 'q4_K', 'q4_0', 'q8_0', hashes=False)
        parts = ('llm', 'vision', 'audio')
        found[shape] = {part: (folder / shape / f'{part}.gguf').read_bytes() for part in parts}
    return found


@pytest.fixture
def server(contents):
    """Serve a tiny model under the names of MiniCPM-o 4.5."""
    files = {name: contents['tiny-4.5'][part] for part, name in NAMES_4_5.items()}
    with HubServer({REPO_4_5: {**files, 'tts/voice-F16.gguf': b'GGUF of a voice'}}) as hub:
        yield hub


def fetch(server, folder, *options, timeout_s=20):
    """Run the verb in this process; return the exit status."""
    asked = options if '--memory-mib' in options else ('--precision', 'q4_k_m', *options)
    end = ['--endpoint', server.url, '--timeout', str(timeout_s)]
    return cli.main(['fetch', '4.5', str(folder), *asked, *end])


def told(capsys):
    """Return the errors as one line."""
    return ' '.join(capsys.readouterr().err.split())


def test_a_fetched_model_is_adopted_with_the_published_hashes(server, tmp_path, capsys):
    assert fetch(server, tmp_path) == 0
    model = ModelDirectory.open(tmp_path)
    assert {part: entry.path for part, entry in model.manifest.files.items()} == NAMES_4_5
    assert model.verify_hashes() == []
    assert model.manifest.licence == 'apache-2.0'
    assert not list(tmp_path.rglob('*.incomplete')) and 'voice' not in capsys.readouterr().out
    sent = dict(server.sent)
    assert fetch(server, tmp_path) == 0 and server.sent == sent  # nothing comes twice


def test_ten_kills_at_random_moments_cost_little_and_the_files_end_right(
    server, contents, tmp_path
):
    command = [sys.executable, '-m', 'minicpmo_ros.cli.main', 'fetch', '4.5', str(tmp_path)]
    command += ['--precision', 'Q4_K_M', '--endpoint', server.url]
    draw, total = random.Random(7), sum(map(len, contents['tiny-4.5'].values()))
    moments = sorted(draw.uniform(0.0, 0.95) * total for _ in range(10))
    for moment in moments:
        reached, go_on = threading.Event(), threading.Event()

        def stop(name, sent, moment=moment, reached=reached, go_on=go_on):
            if sum(server.sent.values()) >= moment:
                reached.set()
                go_on.wait()

        server.on_piece = stop
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        while not reached.wait(0.05):
            assert child.poll() is None
        child.send_signal(signal.SIGKILL)
        child.wait()
        server.on_piece = lambda name, sent: None
        go_on.set()
    assert subprocess.run(command, stdout=subprocess.DEVNULL).returncode == 0
    for part, name in NAMES_4_5.items():
        assert (tmp_path / name).read_bytes() == contents['tiny-4.5'][part]
    assert ModelDirectory.open(tmp_path).verify_hashes() == []
    assert sum(server.sent.values()) < 2 * total  # without resuming, five times as much and more


def test_a_connection_that_breaks_is_taken_up_where_it_broke(server, contents, tmp_path, capsys):
    server.break_after = 300_000
    assert fetch(server, tmp_path) == 0
    assert sum(server.sent.values()) == sum(map(len, contents['tiny-4.5'].values()))
    assert 'it is asked for again' in told(capsys)


def test_a_server_without_ranges_gives_all_again_and_the_file_is_right(server, contents, tmp_path):
    server.break_after = 300_000

    def mend(name, sent):  # the response that is being given breaks, the next one does not
        server.break_after = None

    server.on_piece = mend
    server.knows_ranges = False
    assert fetch(server, tmp_path) == 0
    assert (tmp_path / LLM).read_bytes() == contents['tiny-4.5']['llm']
    assert server.sent[LLM] > len(contents['tiny-4.5']['llm'])


def test_what_does_not_have_the_published_hash_is_removed_and_told(server, tmp_path, capsys):
    server.wrong = {LLM}
    assert fetch(server, tmp_path) == 2
    text = told(capsys)
    assert 'SHA-256' in text and LLM in text and 'Run the same command again' in text
    assert not list(tmp_path.rglob('*.gguf*'))
    server.wrong = set()
    assert fetch(server, tmp_path) == 0


def test_a_file_of_another_content_is_not_overwritten(server, tmp_path, capsys):
    (tmp_path / LLM).write_bytes(b'mine')
    assert fetch(server, tmp_path) == 2
    assert 'is not the published file' in told(capsys)
    assert (tmp_path / LLM).read_bytes() == b'mine'


def test_a_disk_that_is_too_small_is_told_before_a_byte_is_asked_for(server, tmp_path, capsys):
    server.sizes = {LLM: 1 << 60}
    assert fetch(server, tmp_path / 'new') == 2
    text = told(capsys)
    assert 'Make room' in text and 'Nothing was fetched' in text
    assert server.sent == {} and not (tmp_path / 'new').exists()


def test_a_disk_that_fills_up_on_the_way_is_told_and_what_came_is_kept(server, tmp_path):
    program = (
        'import resource, sys\n'
        'resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, resource.RLIM_INFINITY))\n'
        'from minicpmo_ros.cli.main import main\nsys.exit(main(sys.argv[1:]))'
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    command = [sys.executable, '-c', program, 'fetch', '4.5', str(tmp_path), '--endpoint']
    command += [server.url, '--precision', 'Q4_K_M']
    ended = subprocess.run(command, capture_output=True, text=True)
    assert ended.returncode == 2
    assert 'Make room on the disk' in ended.stderr and 'goes on where it stopped' in ended.stderr
    (part,) = tmp_path.rglob('*.incomplete')
    assert 0 < part.stat().st_size <= 600_000
    assert fetch(server, tmp_path) == 0


@pytest.mark.parametrize(
    'broken, status, expected',
    [
        (REPO_4_5, 401, 'give another repository with --repo'),
        (REPO_4_5, 503, 'busy or broken (HTTP 503)'),
        (LLM, 404, 'it is not there, or not for you (HTTP 404)'),
        (LLM, 403, 'hf auth login'),
        (LLM, 500, 'busy or broken (HTTP 500)'),
    ],
)
def test_what_the_server_refuses_is_told_with_a_remedy(
    server, tmp_path, capsys, broken, status, expected
):
    server.status = {broken: status}
    assert fetch(server, tmp_path) == 2
    assert expected in told(capsys)


def test_a_server_that_falls_silent_is_told_and_what_came_is_kept(server, tmp_path, capsys):
    server.on_piece = lambda name, sent: sent > 200_000 and server.closing.wait()
    assert fetch(server, tmp_path, timeout_s=0.3) == 2
    text = told(capsys)
    assert 'no byte came' in text and '--timeout' in text and 'goes on where it stopped' in text
    (part,) = tmp_path.rglob('*.incomplete')
    assert part.stat().st_size > 0


def test_how_fast_it_comes_is_told(server, tmp_path, capsys):
    assert fetch(server, tmp_path) == 0
    assert f'100 % of {LLM}' in (text := told(capsys)) and 'MiB/s' in text and 'min left' in text


def test_without_a_network_it_says_which_files_to_copy_where(server, tmp_path, capsys):
    with HubServer({}) as gone:
        pass
    for run in (
        lambda: fetch(gone, tmp_path),
        lambda: cli.main(['fetch', '2.6', str(tmp_path), '--endpoint', gone.url]),
    ):
        assert run() == 2
        text = told(capsys)
        assert 'cannot be reached' in text and f'minicpmo adopt {tmp_path}' in text
    assert 'minicpmo-audio-encoder_*.gguf' in text and f'huggingface.co/{REPO_2_6}' in text
    assert 'mmproj-model-*.gguf' in text and 'Model-7.6B-*.gguf' in text


def test_a_part_that_is_not_on_the_hub_is_asked_for_and_then_adopted(contents, tmp_path, capsys):
    parts = contents['tiny']
    files = {'Model-7.6B-Q4_K_M.gguf': parts['llm'], 'mmproj-model-f16.gguf': parts['vision']}
    with HubServer({REPO_2_6: files}) as server:
        command = [
            'fetch',
            '2.6',
            str(tmp_path),
            '--precision',
            'Q4_K_M',
            '--endpoint',
            server.url,
        ]
        assert cli.main(command) == 2
        text = told(capsys)
        assert 'minicpmo-audio-encoder_*.gguf' in text and 'modelscope' in text
        (tmp_path / 'minicpmo-audio-encoder_Q8_0.gguf').write_bytes(parts['audio'])
        assert cli.main(command) == 0
    assert ModelDirectory.open(tmp_path).verify_hashes() == []


@pytest.mark.parametrize(
    'memory_mib, expected', [(64_000, 'Q8_0'), (9_000, 'Q4_K_M'), (4_000, None)]
)
def test_the_precision_is_the_largest_that_the_plan_has_memory_for(
    server, tmp_path, capsys, memory_mib, expected
):
    for name in TRUE_SIZES:
        server.repositories[REPO_4_5].setdefault(name, b'of this precision')
    server.sizes = TRUE_SIZES
    options = ('--memory-mib', str(memory_mib), '--dry-run')
    status, shown = fetch(server, tmp_path, *options), capsys.readouterr()
    if expected is None:
        assert status == 2 and 'No precision fits' in shown.err and 'n_ctx' in shown.err
    else:
        assert status == 0 and f'MiniCPM-o-4_5-{expected}.gguf' in shown.out
        assert server.sent == {} and os.listdir(tmp_path) == []


def test_a_precision_that_is_not_there_is_told_with_those_that_are(server, tmp_path, capsys):
    assert fetch(server, tmp_path, '--precision', 'Q2_K') == 2
    assert 'there are Q4_K_M' in told(capsys)


def test_the_manifest_of_other_files_is_not_overwritten(server, tmp_path, capsys):
    write_model(tmp_path, 'tiny', 2, hashes=False)
    assert fetch(server, tmp_path) == 2
    assert '--force' in told(capsys) and server.sent == {}


def test_names_that_leave_the_folder_are_not_fetched(server, tmp_path, capsys):
    server.repositories[REPO_4_5]['../MiniCPM-o-4_5-Q4_K_M.gguf'] = b'GGUF'
    assert fetch(server, tmp_path / 'models', '--llm', '../*.gguf') == 2
    assert 'holds no ../*.gguf for llm' in told(capsys)
    assert server.sent == {} and os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ('arguments', 'told'),
    (
        (['--repo', 'a/b/c'], "--repo is 'a/b/c'; OWNER/NAME is expected"),
        (['--repo', ''], "--repo is ''"),
        (['--endpoint', 'hub.local'], "is 'hub.local'; http://HOST or https://HOST"),
        (['--endpoint', 'ftp://hub.local'], "is 'ftp://hub.local'"),
        (['--timeout', '0'], '--timeout is 0'),
        (['--preset', 'nope'], "no preset 'nope'"),
    ),
)
def test_what_no_hub_can_be_asked_is_refused_before_the_network(tmp_path, capsys, arguments, told):
    nobody = ['--endpoint', 'http://127.0.0.1:1'] * ('--endpoint' not in arguments)
    assert cli.main(['fetch', '4.5', str(tmp_path / 'new'), *arguments, *nobody]) == 2
    err = capsys.readouterr().err
    assert told in err and err.count('\n') == 1 and not (tmp_path / 'new').exists()


def test_a_file_is_no_place_for_a_model(tmp_path, capsys):
    (tmp_path / 'file').touch()
    arguments = ['fetch', '4.5', str(tmp_path / 'file'), '--endpoint', 'http://127.0.0.1:1']
    assert cli.main(arguments) == 2
    assert 'is a file; a folder is expected' in capsys.readouterr().err


def test_an_error_of_the_network_is_told_without_its_number(tmp_path, capsys):
    assert (
        cli.main(['fetch', '4.5', str(tmp_path / 'new'), '--endpoint', 'http://127.0.0.1:1']) == 2
    )
    err = capsys.readouterr().err
    assert 'cannot be reached (' in err and 'Errno' not in err
