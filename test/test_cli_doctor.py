# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The doctor: every check is right about a machine that is well, and about one that is not."""

import fcntl
import json
import os
import shutil
import subprocess
import sys
from importlib import util
from pathlib import Path
from types import SimpleNamespace

import pytest

from minicpmo_ros.cli import doctor_machine as machine
from minicpmo_ros.cli import doctor_model as model
from minicpmo_ros.cli import doctor_software as software
from minicpmo_ros.cli import main as cli
from minicpmo_ros.errors import FAIL, OK, WARN
from minicpmo_ros.memory.plan import PlanOptions, forecast
from minicpmo_ros.memory.proc import available_mib
from minicpmo_ros.modelset.directory import ModelDirectory
from minicpmo_ros.synthetic.model import write_model

GIB_KIB = 2**20
DEVICES = ('device', 'vision_device', 'audio_device')
ON_CPU = PlanOptions(**dict.fromkeys(DEVICES, 'cpu'))


@pytest.fixture(scope='module')
def true_size(tmp_path_factory):
    """Give a MiniCPM-o 2.6 in four bits with nothing behind its headers."""
    directory = tmp_path_factory.mktemp('doctor') / '2.6'
    return ModelDirectory.open(
        write_model(directory, '2.6', None, 'q4_K', 'q4_0', 'q4_0', pad_ffn=True)
    )


@pytest.fixture
def put(tmp_path):
    """Write files below the root of a machine; give the root."""

    def write(files):
        for name, text in files.items():
            path = tmp_path / 'root' / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return tmp_path / 'root'

    return write


def meminfo(total_gib=8.0, available_gib=6.0, swap_gib=0.0, swap_free_gib=0.0):
    rows = {
        'MemTotal': total_gib, 'MemAvailable': available_gib,
        'SwapTotal': swap_gib, 'SwapFree': swap_free_gib,
    }  # fmt: skip
    text = ''.join(f'{name}:  {int(gib * GIB_KIB)} kB\n' for name, gib in rows.items())
    return {'proc/meminfo': text + 'HugePages_Total:       0\n'}


def level(finding, *words):
    text = finding.line()
    assert all(word in text for word in words), text
    assert '\n' not in text and bool(finding.remedy) == (finding.level != OK)
    return finding.level


# --- the machine --------------------------------------------------------------------------------


def test_a_gpu_that_llama_cpp_does_not_use_is_told(put):
    root = put({'proc/x': ''})
    assert level(machine.gpu(root, '')) == OK
    root = put({'dev/nvidia0': ''})
    assert level(machine.gpu(root, ''), '/dev/nvidia0', 'GGML_CUDA') == FAIL
    assert level(machine.gpu(root, 'NVIDIA Orin'), 'NVIDIA Orin') == OK


def test_swap(put):
    assert level(machine.swap(put(meminfo()))) == OK
    assert level(machine.swap(put(meminfo(swap_gib=4, swap_free_gib=3)))) == OK
    assert level(machine.swap(put(meminfo(swap_gib=4, swap_free_gib=0.1))), '4096 MiB') == WARN


NVPMODEL = """< PARAM TYPE=FILE NAME=CPU_ONLINE >
< POWER_MODEL ID=0 NAME=15W >
CPU_ONLINE CORE_0 1
< POWER_MODEL ID=1 NAME=25W >
< POWER_MODEL ID=2 NAME=MAXN_SUPER >
< PM_CONFIG DEFAULT=1 >
"""


def test_power_mode(put):
    assert machine.power(put({'proc/x': ''})) is None
    files = {'etc/nvpmodel.conf': NVPMODEL, 'var/lib/nvpmodel/status': 'pmode:0000\n'}
    assert level(machine.power(put(files)), 'mode 0 (15W)', 'nvpmodel -m 2') == WARN
    files['var/lib/nvpmodel/status'] = 'pmode:0002\n'
    assert level(machine.power(put(files)), 'MAXN_SUPER') == OK


def cpufreq(**values):
    return {f'sys/devices/system/cpu/cpu0/cpufreq/{key}': f'{value}\n' for key, value in
            values.items()}  # fmt: skip


def test_clocks(put):
    assert level(machine.clocks(put({'proc/x': ''}))) == OK
    full = dict(scaling_max_freq=1500000, cpuinfo_max_freq=1500000)
    root = put(cpufreq(scaling_governor='powersave', scaling_driver='tegra194', **full))
    assert level(machine.clocks(root), 'cpu0', 'scaling_governor') == WARN
    root = put(cpufreq(scaling_driver='intel_pstate'))
    assert level(machine.clocks(root), 'powersave') == OK
    root = put(cpufreq(scaling_max_freq=729000))
    assert level(machine.clocks(root), '729 of 1500 MHz') == WARN


def test_load(put):
    root = put({'proc/loadavg': '3.50 2.00 1.00 3/200 4711\n'})
    assert level(machine.load(root, 4)) == OK
    assert level(machine.load(root, 2), '3.5 on 2') == WARN


def test_shared_memory(put):
    root = put({'proc/x': ''})
    assert level(machine.shared_memory(root), '/dev/shm', '--ipc=host') == FAIL
    (root / 'dev/shm').mkdir(parents=True)
    assert level(machine.shared_memory(root)) == OK
    assert level(machine.shared_memory(root, needed_mib=1e12), '--shm-size') == WARN


@pytest.mark.parametrize('free_mib, expected', [(0, FAIL), (3, FAIL), (8, WARN), (64, OK)])
def test_a_small_shared_memory(put, monkeypatch, free_mib, expected):
    root = put({'dev/shm/x': ''})
    stat = SimpleNamespace(f_bavail=free_mib * 256, f_frsize=4096)
    monkeypatch.setattr(machine.os, 'statvfs', lambda path: stat)
    words = {FAIL: ('bus error', 'UDPv4', '--shm-size'), WARN: ('remount,size=512m',), OK: ()}
    assert level(machine.shared_memory(root), f'{free_mib} MiB', *words[expected]) == expected


def test_logs_that_cannot_be_written(tmp_path):
    given = {'ROS_LOG_DIR': str(tmp_path / 'ros/log')}
    assert level(machine.log_folder(given), str(tmp_path / 'ros/log')) == OK
    nobody = lambda path, mode: False  # noqa: E731
    assert level(machine.log_folder(given, nobody), str(tmp_path), 'ROS_LOG_DIR=') == FAIL
    (tmp_path / 'ros').write_text('a file')
    assert level(machine.log_folder(given), 'cannot be written') == FAIL
    for environment, folder in (
        ({'HOME': '/home/x'}, '/home/x/.ros/log'),
        ({'HOME': '/home/x', 'ROS_HOME': '/ros'}, '/ros/log'),
        ({'HOME': '/home/x', 'ROS_HOME': '/ros', 'ROS_LOG_DIR': '/logs'}, '/logs'),
    ):
        assert f'{folder} ' in machine.log_folder(environment).fact


def test_the_folder_that_doctor_fails_is_one_without_which_no_node_starts(tmp_path):
    (tmp_path / 'file').write_text('')
    environment = {**os.environ, 'ROS_LOG_DIR': str(tmp_path / 'file/log')}
    assert level(machine.log_folder(environment), 'No node starts') == FAIL
    code = 'import sys\nfrom minicpmo_ros.ros.live import main\nsys.exit(main())\n'
    done = subprocess.run(
        [sys.executable, '-c', code], env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 1 and str(tmp_path / 'file/log') in done.stderr
    assert 'Traceback' not in done.stderr


@pytest.mark.parametrize(
    'limit, expected', [(20, FAIL), (100, WARN), (256, OK), (1 << 20, OK), (-1, OK)]
)
def test_descriptors(limit, expected):
    words = ('ulimit -n', 'LimitNOFILE') if expected != OK else ()
    assert level(machine.descriptors(limit), *words) == expected
    if limit > 30:
        code = 'from minicpmo_ros.cli import doctor_machine as d\nprint(d.descriptors().line())\n'
        command = ['sh', '-c', f'ulimit -n {limit} && exec "$0" "$@"', sys.executable, '-c', code]
        environment = {**os.environ, 'PYTHONPATH': os.pathsep.join(filter(None, sys.path))}
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert not done.stdout or done.stdout.startswith(expected)  # no more than the hard limit


def test_threads(put):
    root = put({'proc/self/cgroup': '0::/app\n'})
    assert level(machine.threads(root, -1)) == OK
    for room, expected in ((10, FAIL), (100, WARN), (1000, OK)):
        files = {'pids.max': f'{500 + room}\n', 'pids.current': '500\n'}
        put({f'sys/fs/cgroup/app/{name}': text for name, text in files.items()})
        words = (f'{room} more', *(('TasksMax',) if expected != OK else ()))
        assert level(machine.threads(root, -1), *words) == expected
    put({'sys/fs/cgroup/app/pids.max': 'max\n'})
    assert level(machine.threads(root, -1)) == OK


def test_udp_buffers(put):
    assert level(machine.udp(put({'proc/x': ''}))) == OK
    assert level(machine.udp(put({'proc/sys/net/core/rmem_max': '212992\n'})), '0.2 MiB') == WARN
    assert level(machine.udp(put({'proc/sys/net/core/rmem_max': '8388608\n'})), '8.0') == OK


def test_shared_memory_whose_lock_nobody_holds_is_stale(put):
    files = ('fastrtps_a1', 'fastrtps_a1_el', 'fastrtps_port7411', 'fastrtps_port7411_el',
             'fastrtps_b2', 'fastrtps_b2_el', 'sem.other')  # fmt: skip
    root = put({f'dev/shm/{name}': 'x' for name in files})
    with open(root / 'dev/shm/fastrtps_b2_el') as lock:
        fcntl.flock(lock, fcntl.LOCK_SH)
        assert machine.stale_files(root / 'dev/shm') == (sorted(files[:4]), 4)
        assert level(machine.stale_shared_memory(root), '4 files', '/dev/shm/fastrtps_a1') == WARN
    assert machine.stale_files(root / 'dev/shm')[1] == 6
    for path in root.glob('dev/shm/fastrtps_*'):
        path.unlink()
    assert level(machine.stale_shared_memory(root)) == OK


GROUP = {
    'sys/fs/cgroup/memory.max': f'{2 * 2**30}\n',
    'sys/fs/cgroup/memory.current': f'{2**30}\n',
    'sys/fs/cgroup/memory.stat': f'anon 5\ninactive_file {2**29}\n',
}


def test_a_container_bounds_what_is_available(put):
    assert available_mib(put(meminfo())) == 6 * 1024
    assert available_mib(put(GROUP)) == 1536
    assert available_mib(put({'sys/fs/cgroup/memory.max': 'max\n'})) == 6 * 1024
    service = {path.replace('cgroup/', 'cgroup/system.slice/robot.service/'): text
               for path, text in GROUP.items()}  # fmt: skip
    root = put({**service, 'proc/self/cgroup': '0::/system.slice/robot.service\n'})
    assert available_mib(root) == 1536
    version_1 = {
        'sys/fs/cgroup/memory/docker/7/memory.limit_in_bytes': f'{2**30}\n',
        'sys/fs/cgroup/memory/docker/7/memory.usage_in_bytes': f'{2**29}\n',
        'sys/fs/cgroup/memory/docker/7/memory.stat': 'cache 1\ntotal_inactive_file 0\n',
        'proc/self/cgroup': '4:memory:/docker/7\n',
    }
    assert available_mib(put(version_1)) == 512
    # Pages that are mapped are in use, whether the group counts them as touched once or again.
    stat = 'sys/fs/cgroup/memory/docker/7/memory.stat'
    counts = {'inactive_file': 2**28, 'active_file': 2**20, 'mapped_file': 2**28 - 2**22}
    put({stat: '\n'.join(f'total_{name} {n}' for name, n in counts.items())})
    assert available_mib(root) == 512 + 5


def test_what_processes_have_mapped_is_not_available_to_others(put):
    root = put({**meminfo(), 'proc/7/status': 'Name: x\nVmRSS: 4194304 kB\nRssFile: 3145728 kB\n'})
    assert available_mib(root) == available_mib(root, beside=('8',)) == 6 * 1024
    assert available_mib(root, beside=('7', '8')) == 3 * 1024


# --- what is installed --------------------------------------------------------------------------


@pytest.fixture
def site(tmp_path):
    """Give a folder with the metadata of packages, as pip leaves it."""

    def install(**versions):
        for name, version in versions.items():
            folder = tmp_path / 'site' / f'{name}-{version}.dist-info'
            folder.mkdir(parents=True, exist_ok=True)
            (folder / 'METADATA').write_text(f'Name: {name}\nVersion: {version}\n')
        return [str(tmp_path / 'site')]

    return install


def test_versions(site):
    assert level(software.python()) == OK
    assert level(software.python((3, 8)), '3.8') == FAIL
    assert level(software.python((3, 15))) == WARN
    assert level(software.numpy('', 'humble', True)) == FAIL
    assert level(software.numpy('1.19.5', 'humble', True)) == FAIL
    assert level(software.numpy('2.1.0', 'humble', True), 'numpy 1') == FAIL
    assert level(software.numpy('2.1.0', 'jazzy', False)) == OK  # from wheels
    assert level(software.numpy('1.21.5', 'humble', True)) == OK
    assert level(software.llama()) == OK
    assert level(software.llama(site(soxr='1.1'))) == FAIL
    assert level(software.llama(site(llama_cpp_python='0.3.2')), '0.3.36') == FAIL
    assert level(software.packages()) == OK
    assert level(software.packages(site(av='18.1')), 'gguf', 'rosbags') == FAIL


def test_the_pin_is_that_of_the_requirements():
    page = Path(__file__).parents[1] / 'environment' / 'requirements.txt'
    assert f'{software.LLAMA}=={software.PINNED}' in page.read_text().split()


def test_openmp_that_spins():
    assert level(software.openmp({})) == OK
    assert level(software.openmp({'OMP_WAIT_POLICY': 'ACTIVE'}), 'unset OMP_WAIT_POLICY') == WARN


def levels(findings):
    return [level(finding) for finding in findings]


def test_ros():
    def without(*names):
        return lambda name: None if name in names else util.find_spec(name)

    assert levels(software.ros({'ROS_DISTRO': 'kilted'})) == [OK, OK]
    assert levels(software.ros({'ROS_DISTRO': 'foxy'})) == [WARN, OK]
    assert levels(software.ros({})) == [WARN, OK]
    humble = {'ROS_DISTRO': 'humble'}
    assert levels(software.ros({}, without('rclpy'))) == [WARN]
    assert levels(software.ros(humble, without('rclpy'))) == [FAIL]
    assert levels(software.ros(humble, without('minicpmo_ros.msg'))) == [OK, FAIL]
    assert levels(software.ros(humble, without('audio_common_msgs'))) == [OK, WARN]


def test_middleware(tmp_path):
    (tmp_path / 'lib').mkdir()
    (tmp_path / 'lib/librmw_fastrtps_cpp.so').touch()
    good = {'AMENT_PREFIX_PATH': str(tmp_path), 'ROS_DOMAIN_ID': '7'}
    assert level(software.middleware(good), 'rmw_fastrtps_cpp', 'ROS_DOMAIN_ID=7') == OK
    other = {**good, 'RMW_IMPLEMENTATION': 'rmw_zenoh_cpp'}
    assert level(software.middleware(other), 'ros-$ROS_DISTRO-rmw-zenoh-cpp') == FAIL
    lost = {**good, 'FASTDDS_DEFAULT_PROFILES_FILE': '/no/such.xml'}
    assert level(software.middleware(lost), '/no/such.xml') == FAIL
    for domain in ('233', '-1', 'four', '1.5'):  # with which no process would start
        wrong = {**good, 'ROS_DOMAIN_ID': domain}
        assert level(software.middleware(wrong), 'from 0 to 232') == FAIL


# --- the model ----------------------------------------------------------------------------------


def test_files_and_hashes(tiny_model_dir, tmp_path):
    opened, found = model.files(tiny_model_dir)
    assert levels(found) == [OK] and level(model.hashes(opened)) == OK
    damaged = tmp_path / 'damaged'
    shutil.copytree(tiny_model_dir, damaged)
    data = bytearray((damaged / 'vision.gguf').read_bytes())
    data[-1] ^= 1
    (damaged / 'vision.gguf').write_bytes(data)
    opened, _ = model.files(damaged)
    assert level(model.hashes(opened), 'vision.gguf', 'SHA-256') == FAIL
    (damaged / 'audio.gguf').unlink()
    opened, found = model.files(damaged)
    assert opened is None and level(found[0], 'audio.gguf') == FAIL


def test_memory_for_the_model(put, tiny_model_dir):
    opened, _ = model.files(tiny_model_dir)

    def look(gpu='', n_ctx=4096, **gib):
        return model.memory(put(meminfo(**gib)), opened, n_ctx, 'f16', gpu)

    assert level(look(), 'MiB are needed', '8192 are available') == OK
    assert level(look(total_gib=0.125, available_gib=0.125), 'cannot hold it') == FAIL
    assert level(look(available_gib=0.125), 'End other programs') == FAIL
    assert level(look(available_gib=0.25), 'the window may shrink') == WARN
    assert level(look(n_ctx=2**24), 'this model allows 1 to', 'Lower n_ctx') == FAIL
    assert level(look('NVIDIA H100', available_gib=1), 'its own memory') == OK
    put({'etc/nv_tegra_release': ''})
    assert level(look('NVIDIA Orin', available_gib=0.125)) == FAIL


def status(rss_mib, file_mib):
    return f'VmRSS:\t{rss_mib * 1024} kB\nRssFile:\t{file_mib * 1024} kB\n'


@pytest.mark.parametrize('command', ['live', 'python3\0{}live', 'python3\0-X\0{}llm'])
def test_memory_that_the_running_robot_has_is_not_missed(put, true_size, command):
    plan = forecast(true_size, ON_CPU)
    words = command.format('/opt/lib/minicpmo_ros/').replace('live', '/x/minicpmo_ros/live', 1)
    put({'proc/4711/cmdline': words + '\0--ros-args\0'})
    # Healthy: 900 MiB are left beside it; its mapped weights count as available, in use or not.
    put({**meminfo(8, (900 + 4400) / 1024), 'proc/4711/status': status(5850, 4400)})
    found = model.memory(put({}), true_size, 4096, 'f16', '')
    assert level(found, '900 of 8192 are available beside', '(4711)', '5850') == OK
    # It runs, but its model was refused.
    put({**meminfo(8, 1000 / 1024), 'proc/4711/status': status(150, 60)})
    assert level(model.memory(put({}), true_size, 4096, 'f16', ''), 'End other') == FAIL
    # A GPU that computes in the same memory: what is there is not told of the process.
    put({'etc/nv_tegra_release': ''})
    found = model.memory(put({}), true_size, 4096, 'f16', 'NVIDIA Orin')
    assert level(found, 'where ~/status of llm is ready') == WARN
    assert plan.total_mib > 5000


@pytest.mark.parametrize('gpu', ['', 'NVIDIA Orin'])
def test_doctor_and_plan_say_the_same(put, true_size, gpu):
    put({**meminfo(), 'etc/nv_tegra_release': ''})
    plan = forecast(
        true_size,
        PlanOptions(n_ctx=8192, kv_type='q8_0', **dict.fromkeys(DEVICES, 'gpu' if gpu else 'cpu')),
    )
    found = model.memory(put({}), true_size, 8192, 'q8_0', gpu)
    assert f'{plan.total_mib:.0f} MiB are needed' in found.fact


# --- the command --------------------------------------------------------------------------------


def run(capsys, *arguments):
    status = cli.main(['doctor', '--topics', 'no', *map(str, arguments)])
    return status, capsys.readouterr().out


@pytest.fixture
def well(put):
    """Give the root of a machine on which nothing fails."""
    return put({**meminfo(), 'proc/loadavg': '0.1 0 0 1/2 3\n', 'dev/shm/x': ''})


def test_a_line_a_check_and_status_0_where_nothing_fails(well, tiny_model_dir, capsys):
    status, out = run(capsys, tiny_model_dir, '--hashes', '--root', well)
    *lines, summary = out.splitlines()
    assert status == 0, out
    assert all(line.split()[0] in (OK, WARN) for line in lines)
    checks = {line.split()[1] for line in lines}
    assert checks >= {'python', 'llama.cpp', 'gpu', 'files', 'hashes', 'memory', 'swap', 'openmp',
                      'ros', 'rmw', 'shm', 'stale', 'udp', 'logs', 'threads'}  # fmt: skip
    assert summary.startswith(f'{len(lines)} checks, 0 FAIL')


def test_status_1_and_the_same_in_json_where_anything_fails(put, well, tmp_path, capsys):
    put({'dev/nvidia0': ''})
    status, out = run(capsys, tmp_path / 'nothing', '--root', well, '--json')
    report = json.loads(out)
    assert status == 1 and report['ok'] is False
    failed = {each['check']: each for each in report['checks'] if each['level'] == FAIL}
    assert set(failed) == {'gpu', 'files'}
    assert all(each['fact'] and each['remedy'] for each in failed.values())


def test_the_embedded_model_is_found_by_its_name(well, capsys):
    status, out = run(capsys, '--root', well)
    assert status == 0 and 'models/nano' in out


WITHOUT_ROS = """
import sys
sys.modules['rclpy'] = None
from minicpmo_ros.cli.main import main
status = main(['doctor', *sys.argv[1:]])
sys.exit(status if not any(name.startswith('rclpy.') for name in sys.modules) else 9)
"""


@pytest.mark.parametrize('topics, status', [('auto', 0), ('yes', 1)])
def test_it_works_without_ros(well, tiny_model_dir, topics, status):
    command = [sys.executable, '-c', WITHOUT_ROS, tiny_model_dir, '--root', well]
    done = subprocess.run(
        [*map(str, command), '--topics', topics],
        env={'PATH': '/usr/bin', '_ROS_WHEELS_BOOTSTRAP_COMPLETE': '1'},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == status, done.stdout + done.stderr
    assert 'Nodes cannot run' in done.stdout
    assert ('without rclpy' in done.stdout) == (topics == 'yes')


def test_a_llama_cpp_that_does_not_load_is_told(well, tiny_model_dir, tmp_path):
    (tmp_path / 'llama_cpp.py').write_text('raise ImportError("libcuda.so.1 is not there")')
    done = subprocess.run(
        [sys.executable, '-m', 'minicpmo_ros.cli.main', 'doctor', str(tiny_model_dir),
         '--root', str(well), '--topics', 'no'],
        env={'PYTHONPATH': str(tmp_path), '_ROS_WHEELS_BOOTSTRAP_COMPLETE': '1'},
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    assert 'FAIL llama.cpp' in done.stdout and 'libcuda.so.1' in done.stdout
    assert 'warn files' in done.stdout
