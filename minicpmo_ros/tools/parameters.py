# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Print every parameter and launch argument as Markdown tables, from the code that declares them.

docs/parameters.md is what this prints:

    minicpmo parameters > docs/parameters.md
"""

SUMMARY = 'print the tables of all parameters (docs/parameters.md)'
INTRODUCTION = """# Parameters

Made by `minicpmo parameters > docs/parameters.md` from the code that declares them.

A value of the wrong type, out of range, not a number or not among the choices is refused with a
sentence: at start the process ends with exit code 1, later the change is refused. A float wants
its point (`1.0`, not `1`). Unknown names are told in the log. In a YAML, key the nodes by
`/**/llm:`, which holds in every namespace.

**When** says when a change takes effect. *configure*: the parameter is read when the node is
configured, because memory, files and threads are laid out by it; while the node is configured a
change is refused with that reason (`ros2 lifecycle set /llm deactivate`, `cleanup`, then set it,
`configure` and `activate`). *any time*: it holds from the next piece of work on. *start*: it is
read once.

## Quality of service

Every topic of these nodes takes its quality of service from read-only parameters, given at start:

    qos_overrides.<topic>.<subscription|publisher>.<history|depth|reliability|durability>

with the topic's full name, such as `qos_overrides./image.subscription.reliability:=reliable`.
Where two ends of a topic do not fit each other, the log and `/diagnostics` name the other node,
the policy, both values and the parameter that mends it.
"""


def add_arguments(parser) -> None:
    """Take no arguments."""


def run(arguments) -> int:
    """Print the page."""
    print(page(), end='')
    return 0


def page() -> str:
    """Give the page; needs rclpy, as the nodes do."""
    from minicpmo_ros.nodes import launching, media_player, recorder, replay
    from minicpmo_ros.nodes.llm import LlmNode
    from minicpmo_ros.nodes.managed import COMMON_PARAMETERS
    from minicpmo_ros.nodes.parameters import START
    from minicpmo_ros.nodes.streaming_encoder import StreamingEncoder
    from minicpmo_ros.nodes.vision_encoder import VisionNode

    tables = [('`llm`, `streaming_encoder` and `vision_encoder`', COMMON_PARAMETERS, None)]
    for name, node in (
        ('llm', LlmNode),
        ('streaming_encoder', StreamingEncoder),
        ('vision_encoder', VisionNode),
    ):
        tables.append((f'`{name}`', node.PARAMETERS, None))
    for module in (media_player, recorder, replay):
        name = module.__name__.rpartition('.')[2]
        tables.append((f'`{name}`', module.PARAMETERS, START))
    launches = {'live': launching.ARGUMENTS, 'replay': launching.REPLAY_ARGUMENTS}
    return (
        INTRODUCTION
        + ''.join(_table(*table) for table in tables)
        + ''.join(_launch_table(name, rows) for name, rows in launches.items())
    )


def _table(title: str, rows, when: str) -> str:
    lines = [
        f'\n## {title}\n',
        '| parameter | default | allowed | what | when |',
        '|---|---|---|---|---|',
        *(_row(row, when) for row in rows),
    ]
    return '\n'.join(lines) + '\n'


def _launch_table(name: str, rows) -> str:
    lines = [
        f'\n## `ros2 launch minicpmo_ros {name}.launch.py`\n',
        '| argument | default | what |',
        '|---|---|---|',
        *(f'| `{argument}:=` | {default and f"`{default}`"} | {what} |'
          for argument, default, what in rows),
    ]  # fmt: skip
    return '\n'.join(lines) + '\n'


def _row(row, when: str) -> str:
    unit = f' [{row.unit}]' if row.unit else ''
    cells = (
        f'`{row.name}`',
        f'`{row.default!r}`',
        _allowed(row),
        row.description + unit,
        when or row.when,
    )
    return '| ' + ' | '.join(cell.replace('|', '\\|') for cell in cells) + ' |'


def _allowed(row) -> str:
    if row.choices:
        return ', '.join(f'`{choice}`' for choice in row.choices)
    if row.minimum is not None:
        return f'{row.minimum} to {row.maximum}'
    return {bool: '`True`, `False`', str: 'any text'}.get(type(row.default), 'any number')
