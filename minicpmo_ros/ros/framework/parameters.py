# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Node parameters as tables: declared, described, bounded and refused in one place.

A node lists its parameters as `Parameter` rows. `ParameterTable` declares them on the node,
returns their values as one frozen object, and refuses wrong values with a reason: values out of
range, not a number or not among the choices, and changes that would not take effect.
"""

import os
import sys
from dataclasses import dataclass
from difflib import get_close_matches
from types import SimpleNamespace

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.exceptions import (
    InvalidParameterTypeException,
    InvalidParameterValueException,
    ParameterUninitializedException,
)

from minicpmo_ros.errors import InputError

STEP_ANY = 0.0
NEAR = 0.7  # of names, as difflib counts: n_context is near n_ctx
# When a change takes effect.
CONFIGURE, ANY_TIME, START = 'configure', 'any time', 'start'
SENTENCES = {
    CONFIGURE: ' Read when the node is configured.',
    ANY_TIME: '',
    START: ' Read once, at the start.',
}


@dataclass(frozen=True)
class Parameter:
    """One row: `default` gives the type; `unit` is part of the description."""

    name: str
    default: bool | int | float | str
    description: str
    unit: str = ''
    minimum: float | None = None
    maximum: float | None = None
    choices: tuple[str, ...] = ()
    when: str = CONFIGURE
    or_list: bool = False  # a text that may be written as a list of texts, which commas join
    is_path: bool = False  # a file or folder; ~ is the home of whom the process belongs to
    or_number: bool = False  # a text that may be written as a whole number: `:=0` is one to ROS

    def descriptor(self) -> ParameterDescriptor:
        """Return the ROS description with range, choices and unit."""
        descriptor = ParameterDescriptor(
            description=self.sentence(),
            dynamic_typing=self.or_number or self.or_list or self.takes_bool,
        )
        if self.minimum is not None:
            if isinstance(self.default, float):
                descriptor.floating_point_range = [
                    FloatingPointRange(
                        from_value=float(self.minimum),
                        to_value=float(self.maximum),
                        step=STEP_ANY,
                    )
                ]
            else:
                descriptor.integer_range = [
                    IntegerRange(from_value=int(self.minimum), to_value=int(self.maximum), step=1)
                ]
        if self.choices:
            descriptor.additional_constraints = 'one of: ' + ', '.join(map(repr, self.choices))
        return descriptor

    @property
    def takes_bool(self) -> bool:
        """Whether true and false are among other choices: they come as bools from YAML."""
        return {'true', 'false'} <= set(self.choices)

    def value_of(self, given):
        """Return a given value, converted to text if the parameter is text, a path made whole."""
        if self.is_path:
            return os.path.expanduser(given)
        if self.takes_bool and isinstance(given, bool):
            return str(given).lower()
        if self.or_list and not isinstance(given, str):
            return ','.join(given)
        return str(given) if self.or_number else given

    def sentence(self) -> str:
        """Return the description with its unit and when a change takes effect."""
        unit = f' [{self.unit}]' if self.unit else ''
        return f'{self.description}{unit}.{SENTENCES[self.when]}'

    def problem(self, value) -> str:
        """Return why `value` is refused, or '' if it is not."""
        if self.or_number and (isinstance(value, bool) or not isinstance(value, (int, str))):
            return f'{self.name} is {value!r}; allowed are a text and a whole number'
        if self.or_list and not isinstance(value, str):
            is_list = isinstance(value, list | tuple) or hasattr(value, 'tolist')
            if not is_list or not all(isinstance(each, str) for each in value):
                return f'{self.name} is {value!r}; allowed are a text and a list of texts'
        value = self.value_of(value)
        if self.choices and value not in self.choices:
            allowed = ', '.join(map(repr, self.choices))
            return f'{self.name} is {value!r}; allowed are {allowed}'
        if self.minimum is not None and not self.minimum <= value <= self.maximum:
            return f'{self.name} is {value!r}; allowed is {self.minimum} to {self.maximum}'
        return ''


class ParameterTable:
    """The declared parameters of one node.

    `is_configured` is asked before a change: a callable that says whether the node's
    parameters are in use. None: the node reads all of them once, at its start.
    """

    def __init__(self, node, rows: tuple[Parameter, ...], is_configured=None):
        self._node, self._rows = node, {row.name: row for row in rows}
        self._is_configured = is_configured
        for row in rows:
            self._declare(row)
        self._warn_unknown()
        self._warn_left_out()
        node.add_on_set_parameters_callback(self._on_set)

    def values(self) -> SimpleNamespace:
        """Return all values; 'a.b' becomes the attribute a_b."""
        named = self.named().items()
        return SimpleNamespace(**{name.replace('.', '_'): value for name, value in named})

    def named(self) -> dict:
        """Return all values by the parameters' names."""
        return {
            name: row.value_of(self._node.get_parameter(name).value)
            for name, row in self._rows.items()
        }

    def _declare(self, row: Parameter) -> None:
        try:
            self._node.declare_parameter(row.name, row.default, row.descriptor())
        except InvalidParameterTypeException as error:
            raise InputError(
                f'parameter {row.name}: {error}; it takes a {type(row.default).__name__}'
                f', such as {row.default!r}'
            ) from None
        except InvalidParameterValueException as error:
            raise InputError(f'parameter {row.name}: {error}') from None
        try:
            value = self._node.get_parameter(row.name).value
        except ParameterUninitializedException:  # as ROS reads what is none of its types
            raise InputError(
                f'parameter {row.name}: its value is none that ROS knows (an empty list, a list '
                'in a list, or nothing); leave it out, or give a '
                f'{type(row.default).__name__}, such as {row.default!r}'
            ) from None
        if problem := row.problem(value):
            raise InputError(f'parameter {problem}')

    def _warn_unknown(self) -> None:
        given = set(getattr(self._node, '_parameter_overrides', {}))
        unknown = sorted(
            name
            for name in given - set(self._rows)
            if not self._node.has_parameter(name) and not name.startswith('qos_overrides.')
        )
        if unknown:
            named = [_with_nearest(name, self._rows) for name in unknown]
            self._node.get_logger().warning(
                f'unknown parameters, ignored: {", ".join(named)}; '
                f'known are: {", ".join(self._rows)}'
            )

    def _warn_left_out(self) -> None:
        """Tell what ROS leaves out in silence: names of nodes on the command line."""
        name, namespace = self._node.get_name(), self._node.get_namespace()
        given = [
            text
            for flag, text in zip(sys.argv, sys.argv[1:])
            if flag in ('-p', '--param') and text.startswith(f'{name}:') and ':=' in text
        ]
        if given and namespace != '/':
            self._node.get_logger().warning(
                f'{", ".join(given)} has no effect: on the command line ROS finds no node by its '
                f'name in a namespace ({namespace}). Write it into a file for --params-file, '
                f'under the key /**/{name}:'
            )

    def _on_set(self, parameters) -> SetParametersResult:
        for parameter in parameters:
            row = self._rows.get(parameter.name)
            if row is None:
                continue
            reason = row.problem(parameter.value)
            is_new = parameter.value != self._node.get_parameter(row.name).value
            if not reason and is_new:
                reason = self._in_use(row)
            if reason:
                return SetParametersResult(successful=False, reason=reason)
        return SetParametersResult(successful=True)

    def _in_use(self, row: Parameter) -> str:
        """Return why a change would not take effect now, or ''."""
        if self._is_configured is None or row.when == START:
            return f'{row.name} is read once, at the start; give it there: -p {row.name}:=VALUE'
        if row.when == CONFIGURE and self._is_configured():
            return (
                f'{row.name} is read when the node is configured: memory, files and threads are '
                'laid out by it. Deactivate and clean up the node first, then set it and '
                'configure again'
            )
        return ''


def _with_nearest(name: str, known) -> str:
    near = get_close_matches(name, known, 1, NEAR)
    return f'{name} (meant {near[0]}?)' if near else name
