# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""The policy for SROS2 lets every executable do what it does, and nothing that nobody does."""

import configparser
import re
from fnmatch import fnmatch
from itertools import product
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[1]
POLICY = ElementTree.parse(ROOT / 'config' / 'sros2' / 'policy.xml').getroot()
TABLES = (ROOT / 'docs' / 'topics.md').read_text()
KINDS = {
    ('topics', 'publish'): 'topic',
    ('topics', 'subscribe'): 'topic',
    ('services', 'reply'): 'service',
    ('services', 'request'): 'service',
    ('actions', 'execute'): 'action',
    ('actions', 'call'): 'action',
}
SOURCES = '\n'.join(path.read_text() for path in (ROOT / 'minicpmo_ros' / 'ros').rglob('*.py'))
OF_RCLPY = {  # that every node or every lifecycle node has
    'rosout', 'parameter_events', 'clock', 'transition_event', 'describe_parameters',
    'get_parameter_types', 'get_parameters', 'list_parameters', 'set_parameters',
    'set_parameters_atomically', 'get_type_description', 'change_state', 'get_state',
    'get_available_states', 'get_available_transitions', 'get_transition_graph',
    '_service_event', 'diagnostics',
}  # fmt: skip


def enclaves() -> dict:
    """Return {executable: its profiles}."""
    found = {}
    for enclave in POLICY.iter('enclave'):
        folder, name = enclave.get('path').rsplit('/', 1)
        assert folder == '/minicpmo_ros' and name not in found
        found[name] = list(enclave.iter('profile'))
    return found


def rules_of(profile) -> dict:
    """Return {(kind, access): names}; a name with ~/ is told by the node's."""
    found = {}
    for element in profile:
        ((access, allowed),) = element.attrib.items()
        assert allowed == 'ALLOW' and (element.tag, access) not in found
        assert {child.tag for child in element} == {KINDS[element.tag, access]}
        names = [child.text.replace('~', profile.get('node'), 1) for child in element]
        assert len(names) == len(set(names))
        found[element.tag, access] = set(names)
    return found


def of_node(executable: str, node: str) -> dict:
    (found,) = [rules_of(p) for p in enclaves()[executable] if p.get('node') == node]
    return found


def executables() -> set:
    setup = configparser.ConfigParser()
    setup.read(ROOT / 'setup.cfg')
    scripts = setup['options.entry_points']['console_scripts']
    return set(re.findall(r'^(\w+) =', scripts, re.MULTILINE)) - {'minicpmo'}  # no node: a client


def table(title: str) -> list:
    """Return the cells of the rows of a table of docs/topics.md."""
    (section,) = re.findall(rf'^## {title}\n(.*?)(?=^## )', TABLES, re.MULTILINE | re.DOTALL)
    rows = re.findall(r'^\| (?!node|---)(.*) \|$', section, re.MULTILINE)
    assert rows
    return [row.split(' | ') for row in rows]


def quoted(text: str) -> list:
    return re.findall(r'`([^`]+)`', text)


def nodes_of(cell: str) -> list:
    if cell == 'those with `/diagnostics`':
        (cell,) = [nodes for nodes, names, *_ in table('Outputs') if names == '`/diagnostics`']
    encoders = ['vision_encoder', 'streaming_encoder'] if 'both encoders' in cell else []
    return encoders + quoted(cell)


def told(title: str) -> list:
    """Return (node, name) of a table, without its ~."""
    found = []
    for nodes, names, *_ in table(title):
        nodes, names = nodes_of(nodes), quoted(names.replace('~/alerts/ID', '~/alerts/any'))
        pairs = zip(nodes, names) if len(nodes) == len(names) else product(nodes, names)
        found += [(node, name.replace('~', node, 1)) for node, name in pairs]
    assert len(found) > 8
    return found


def test_the_policy_has_an_enclave_for_every_executable_and_no_other():
    assert POLICY.tag == 'policy' and POLICY.get('version') == '0.2.0'
    assert set(enclaves()) == executables()
    for name, profiles in enclaves().items():
        nodes = [profile.get('node') for profile in profiles]
        assert len(nodes) == len(set(nodes)) and (name in nodes or name == 'live')


def test_a_node_has_the_same_rights_in_every_process():
    for profiles in enclaves().values():
        for profile in profiles:
            node = profile.get('node')
            assert rules_of(profile) == of_node('live' if node == 'llm' else node, node)


def known_where(node: str) -> str:
    return 'live' if node not in enclaves() else node


@pytest.mark.parametrize(
    ('title', 'kinds'),
    [
        ('Inputs', [('topics', 'subscribe')]),
        ('Outputs', [('topics', 'publish')]),
        ('Services and actions', [('services', 'reply'), ('actions', 'execute')]),
    ],
)
def test_what_the_page_of_topics_tells_is_allowed(title, kinds):
    missing = []
    for node, name in told(title):
        rules = of_node(known_where(node), node)
        names = set().union(*(rules.get(kind, set()) for kind in kinds))
        if name != '...' and not any(fnmatch(name, known) for known in names):
            missing.append((node, name))
    assert missing == []


def test_what_one_node_calls_another_one_offers():
    offered, called = set(), set()
    for profiles in enclaves().values():
        for profile in profiles:
            rules = rules_of(profile)
            offered |= rules.get(('services', 'reply'), set())
            offered |= rules.get(('actions', 'execute'), set())
            called |= rules.get(('services', 'request'), set())
            called |= rules.get(('actions', 'call'), set())
    # `live` connects these by name to the encoders'; the three nodes alone are remapped so.
    of_encoders = {'look', 'read_audio'}
    assert called - offered == of_encoders | {'say', 'sound_play'}  # and of other packages


def test_every_name_of_the_policy_is_one_of_the_sources():
    unknown = set()
    for profiles in enclaves().values():
        for profile in profiles:
            for names in rules_of(profile).values():
                for name in names:
                    last = name.rsplit('/', 1)[-1]
                    is_known = last in OF_RCLPY or re.search(
                        rf"[/'\"]{re.escape(last)}['\"]", SOURCES
                    )
                    unknown |= {name} if not is_known and last != '*' else set()
    assert unknown == set()


def test_nobody_but_the_tools_may_reset_or_set_and_nobody_may_end_a_node():
    strong = {}
    for executable, profiles in enclaves().items():
        for profile in profiles:
            for name in rules_of(profile).get(('services', 'request'), ()):
                if re.search(r'/(reset|set_parameters|change_state|forget|remember)$', name):
                    strong.setdefault(executable, set()).add(name)
    assert strong == {
        'replay': {'llm/reset', 'llm/set_parameters'}, 'web': {'llm/set_parameters'}
    }  # fmt: skip
