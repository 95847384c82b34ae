"""Groups of options: a command takes a dataclass, Typer sees one option per field.

A group is a function whose parameters are Typer options and whose result is a frozen dataclass. A command names it in
the annotation of a parameter, ``clip: Annotated[ClipOptions, Group(clip_options)]``.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

from uvos_jax.interrupts import exit_immediately


@dataclasses.dataclass(frozen=True)
class Group:
    """Annotation of a parameter that stands for the options of ``factory``."""

    factory: Callable[..., Any]


def grouped(function: Callable[..., Any]) -> Callable[..., Any]:
    """Replaces every parameter annotated with a ``Group`` by the parameters of its factory."""
    signature = inspect.signature(function)
    factories, parameters = {}, []
    for parameter in signature.parameters.values():
        metadata = getattr(parameter.annotation, "__metadata__", ())
        group = next((entry for entry in metadata if isinstance(entry, Group)), None)
        if group is None:
            parameters.append(parameter)
        else:
            factories[parameter.name] = group.factory, tuple(inspect.signature(group.factory).parameters)
            parameters.extend(inspect.signature(group.factory).parameters.values())

    @functools.wraps(function)
    def command(**values: Any) -> Any:
        with exit_immediately():  # factories import the module of their dataclass
            for name, (factory, names) in factories.items():
                values[name] = factory(**{option: values.pop(option) for option in names})
        return function(**values)

    parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    command.__signature__ = signature.replace(parameters=parameters)
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    del command.__wrapped__
    return command
