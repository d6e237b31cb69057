# Copyright 2026 the minicpmo_ros authors
# SPDX-License-Identifier: Apache-2.0

"""Node parameters as tables: declared, described, bounded and refused in one place.

A node lists its parameters as `Parameter` rows. `ParameterTable` declares them on the node,
gives their values as one frozen object, and refuses wrong values with a reason: a value out of
range, not a number or not among the choices always, and a change that would not take effect.
"""

from dataclasses import dataclass
from types import SimpleNamespace

from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException

from minicpmo_ros.errors import InputError

STEP_ANY = 0.0
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

    def descriptor(self) -> ParameterDescriptor:
        """Give the ROS description with range, choices and unit."""
        descriptor = ParameterDescriptor(description=self.sentence())
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

    def sentence(self) -> str:
        """Give the description with its unit and when a change takes effect."""
        unit = f' [{self.unit}]' if self.unit else ''
        return f'{self.description}{unit}.{SENTENCES[self.when]}'

    def problem(self, value) -> str:
        """Say why `value` is refused, or '' when it is not."""
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
        node.add_on_set_parameters_callback(self._on_set)

    def values(self) -> SimpleNamespace:
        """Give all values; 'a.b' becomes the attribute a_b."""
        named = self.named().items()
        return SimpleNamespace(**{name.replace('.', '_'): value for name, value in named})

    def named(self) -> dict:
        """Give all values by the parameters' names."""
        return {name: self._node.get_parameter(name).value for name in self._rows}

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
        if problem := row.problem(self._node.get_parameter(row.name).value):
            raise InputError(f'parameter {problem}')

    def _warn_unknown(self) -> None:
        given = set(getattr(self._node, '_parameter_overrides', {}))
        unknown = sorted(
            name
            for name in given - set(self._rows)
            if not self._node.has_parameter(name) and not name.startswith('qos_overrides.')
        )
        if unknown:
            self._node.get_logger().warning(
                f'unknown parameters, ignored: {", ".join(unknown)}; '
                f'known are: {", ".join(self._rows)}'
            )

    def _on_set(self, parameters) -> SetParametersResult:
        for parameter in parameters:
            row = self._rows.get(parameter.name)
            if row is None:
                continue
            reason = row.problem(parameter.value)
            reason = reason or self._in_use(row)
            if reason:
                return SetParametersResult(successful=False, reason=reason)
        return SetParametersResult(successful=True)

    def _in_use(self, row: Parameter) -> str:
        """Say why a change would not take effect now, or ''."""
        if self._is_configured is None or row.when == START:
            return f'{row.name} is read once, at the start; give it there: -p {row.name}:=VALUE'
        if row.when == CONFIGURE and self._is_configured():
            return (
                f'{row.name} is read when the node is configured: memory, files and threads are '
                'laid out by it. Deactivate and clean up the node first, then set it and '
                'configure again'
            )
        return ''
