# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The rooms of the package lie on floors, and a stranger finds a way in them."""

import ast
import re
from functools import cache
from pathlib import Path

import minicpmo_ros
from benchmarks import house

ROOT = Path(__file__).resolve().parent.parent / 'minicpmo_ros'
FLOORS = re.findall(r'^(\w[\w.]*) {2,}\S', minicpmo_ros.__doc__, re.MULTILINE)
BESIDE = ('errors', 'config', 'documents', 'process', 'units')
OF_ROS = FLOORS[FLOORS.index('ros.framework') :]
BELOW_ROS = FLOORS[: FLOORS.index('ros.framework')]
GENERATED = ('msg', 'srv', 'action')
MOST_LINES = 400


read_modules = cache(house.read_modules)


def modules():
    """Return {module: its tree}, by the name below the package."""
    return {name: tree for name, (_, _, tree) in read_modules().items() if name}


def imported(tree):
    """Yield the modules that a module imports, anywhere in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == 'minicpmo_ros':
            yield from (f'minicpmo_ros.{alias.name}' for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def room_of(module):
    """Return the room of a module below the package, or None for one beside the rooms."""
    rooms = [room for room in FLOORS if f'{module}.'.startswith(f'{room}.')]
    return max(rooms, key=len) if rooms else None


def test_every_module_is_in_a_room_or_beside_them():
    assert len(FLOORS) == len(set(FLOORS)) > 10
    assert {module for module in modules() if room_of(module) is None} == set(BESIDE)
    assert {room_of(module) for module in modules()} - {None} == set(FLOORS)


def test_no_room_imports_from_a_room_above_it():
    upward = []
    for module, tree in modules().items():
        floor = FLOORS.index(room_of(module)) if room_of(module) else -1
        for name in imported(tree):
            if not name.startswith('minicpmo_ros.') or name.split('.')[1] in GENERATED:
                continue
            room = room_of(name.removeprefix('minicpmo_ros.'))
            if room is not None and FLOORS.index(room) > floor:
                upward.append((module, name))
    assert upward == []


def test_only_the_rooms_of_ros_import_rclpy_or_a_message():
    ros = re.compile(r'rclpy|\w+_msgs(\.|$)|rosgraph_msgs|minicpmo_ros\.(msg|srv|action)(\.|$)')
    found = {
        (module, name)
        for module, tree in modules().items()
        if room_of(module) not in OF_ROS
        for name in imported(tree)
        if ros.match(name)
    }
    assert found == set()


def test_no_clock_on_the_wall_and_no_environment_below_the_rooms_of_ros():
    found = [
        path
        for path in ROOT.rglob('*.py')
        if room_of('.'.join(path.relative_to(ROOT).with_suffix('').parts)) in BELOW_ROS
        and re.search(r'time\.time\b|datetime\.now|os\.environ|os\.getenv', path.read_text())
    ]
    assert found == []


def test_no_file_is_longer_than_a_stranger_reads():
    lengths = {path: len(path.read_text().splitlines()) for path in ROOT.rglob('*.py')}
    assert {str(path): n for path, n in lengths.items() if n > MOST_LINES} == {}


def test_no_module_is_so_small_that_it_could_be_a_part_of_its_only_importer():
    assert house.small_modules(read_modules()) == []


def test_no_two_public_classes_have_one_name():
    assert house.shared_class_names(read_modules()) == {}


def test_no_constant_is_defined_twice():
    assert house.repeated_constants(read_modules()) == {}


def test_no_figure_of_the_sources_is_larger_than_contributing_says():
    text = (ROOT.parent / 'CONTRIBUTING.md').read_text()
    most = dict(re.findall(r'^\| (\w[^|]*) \| [^|]+ \| (\d+) \|$', text, re.MULTILINE))
    figures = house.source_figures(house.read_modules())
    assert set(figures) < set(most)
    assert {name: n for name, (n, _) in figures.items() if n > int(most[name])} == {}


def test_private_names_of_others_are_found_in_tests(tmp_path):
    (tmp_path / 'test_one.py').write_text(
        'from product import _secret, shown\nself._own = shown.__doc__\nthing._part.other\n'
        "monkeypatch.setattr(thing, '_part', None)\npatch('product.thing._part')\n"
    )
    found = [line.split(':')[1] for line in house.private_names(tmp_path)]
    assert sorted(found) == ['1 _secret', '3 _part', '4 _part', '5 _part']


def test_what_is_counted_is_found_where_it_is(tmp_path, monkeypatch):
    source = 'LONGEST_S = 3\n\nclass Clip:\n    pass\n'
    (tmp_path / 'one.py').write_text(source)
    (tmp_path / 'other.py').write_text(f'from minicpmo_ros.one import LONGEST_S as MOST\n{source}')
    monkeypatch.setattr(house, 'PACKAGE', tmp_path)
    modules = house.read_modules()
    assert house.small_modules(modules) == [('one', 'other')]
    assert house.shared_class_names(modules) == {'Clip': ['one', 'other']}
    assert house.repeated_constants(modules) == {('LONGEST_S', '3'): ['one', 'other']}
