"""Schemas of configuration dicts, and the one validator of options.

A schema is a table ``{key: Option}``. It stands in the module that uses the values.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple

from uvos_jax.errors import UserError, nearest_hint

REQUIRED = object()  # default of an option that must be given
_LARGEST = 1e30  # of numbers: float32 overflows soon after
_LONGEST_SHOWN = 100  # characters of a value in a message


class Option(NamedTuple):
    """One option of a configuration.

    Attributes:
        default: Value of an option that is not given, or ``REQUIRED``.
        expected: Description of a valid value, for messages.
        is_valid: Predicate of valid values.
        choices: All valid values, where they are names.
    """

    default: Any
    expected: str
    is_valid: Callable[[Any], bool]
    choices: tuple[str, ...] = ()


def check_options(given: Any, schema: Mapping[str, Option], what: str) -> dict[str, Any]:
    """Checks a dict of a configuration and fills in the defaults.

    Args:
        given: Dict or ConfigDict.
        schema: Options of the dict.
        what: Path of the dict in the configuration, for messages; empty for the whole configuration.

    Returns:
        A plain dict with every key of the schema.

    Raises:
        UserError: It is not a dict, a key is unknown or missing, or a value is invalid; the message names the key.
    """
    given, name = plain(given), f"{what} configuration" if what else "configuration"
    if not isinstance(given, dict):
        raise UserError(f"The {name} must be a dict, not {_shown(given)}.")
    check_keys(given, schema, f"the {name}")
    filled = {key: given.get(key, option.default) for key, option in schema.items()}
    for key, value in filled.items():
        option = schema[key]
        if value is REQUIRED or (value is None and option.default is REQUIRED):
            raise UserError(f"Missing key '{key}' in the {name}: give {option.expected}.")
        if key in given:
            check_value(value, option, f"The {name}'s {key}")
    return filled


def check_keys(given: Iterable[str], known: Iterable[str], where: str) -> None:
    """Checks that all keys are known.

    Args:
        given: Keys that were given.
        known: Valid keys.
        where: What has the keys, for the message: ``Unknown key 'x' in <where>``.

    Raises:
        UserError: A key is unknown; the message lists the valid keys and names the nearest one.
    """
    known = tuple(known)
    for key in given:
        if key not in known:
            raise UserError(f"Unknown key {_shown(str(key))} in {where}; valid keys: {', '.join(known) or 'none'}."
                            f"{nearest_hint(str(key), known)}")


def check_value(value: Any, option: Option, name: str) -> None:
    """Checks one value.

    Args:
        value: The value.
        option: The option that it is given for.
        name: Subject of the message: ``<name> must be an integer from 1 to 8, not 'x'``.

    Raises:
        UserError: The value is invalid.
    """
    if not option.is_valid(value):
        raise UserError(f"{name} must be {option.expected}, not {_shown(value)}."
                        f"{nearest_hint(value if isinstance(value, str) else '', option.choices)}")


def check_named(given: Any, schemas: Mapping[str, Mapping[str, Option]], what: str, key: str = "name"
                ) -> tuple[str, dict[str, Any]]:
    """Checks a dict such as ``{"name": ..., option: value}``, whose schema depends on the name.

    Args:
        given: The dict.
        schemas: Schema of each name.
        what: What is named, for messages.
        key: Key of the name.

    Returns:
        The name, and all other options.

    Raises:
        UserError: The name is unknown, or see ``check_options``.
    """
    given = plain(given)
    name = given.get(key) if isinstance(given, dict) else None
    if not (isinstance(name, str) and name in schemas):
        raise UserError(f"Unknown {what} {_shown(name)}; set its '{key}' to one of {', '.join(schemas)}."
                        f"{nearest_hint(name if isinstance(name, str) else '', schemas)}")
    return name, check_options({option: value for option, value in given.items() if option != key}, schemas[name],
                               f"{what} {name}")


def plain(value: Any) -> Any:
    """Copies nested ConfigDicts, mappings and sequences to dicts and lists."""
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def integer(default: Any, least: int, most: int = 2**31 - 1) -> Option:
    """An integer from ``least`` to ``most``; booleans are not integers."""
    return Option(default, f"an integer from {least} to {most}", lambda value: _is_integer(value, least, most))


def number(default: Any, least: float = 0.0, most: float = _LARGEST) -> Option:
    """A number from ``least`` to ``most``."""
    upper = "" if most == _LARGEST else f" and at most {most:g}"
    return Option(default, f"a number of at least {least:g}{upper}", lambda value: _is_number(value, least, most))


def positive(default: Any) -> Option:
    """A number above 0."""
    return Option(default, "a number above 0", lambda value: _is_number(value, 0, _LARGEST) and value > 0)


def fraction(default: Any, *, one: bool = True) -> Option:
    """A number from 0 to 1; ``one`` says whether 1 is included."""
    return Option(default, f"a number from 0 to {'1' if one else 'below 1'}",
                  lambda value: _is_number(value, 0, 1) and (one or value < 1))


def interval(default: Any, least: float, most: float) -> Option:
    """Two numbers from ``least`` to ``most`` in ascending order."""
    return Option(default, f"a range [smallest, largest] of numbers from {least:g} to {most:g}",
                  lambda value: _is_list(value, lambda x: _is_number(x, least, most), 2) and value[0] <= value[1])


def size(default: Any, least: int = 1, most: int = 2**15 - 1) -> Option:
    """Height and width in pixels; OpenCV's warps are limited to 32767."""
    return integers(default, "[height, width], integers", 2, least, most)


def color(default: Any) -> Option:
    """Red, green and blue, 0 to 255."""
    return integers(default, "[red, green, blue], integers", 3, 0, 255)


def integers(default: Any, expected: str, length: int, least: int, most: int) -> Option:
    """A list of ``length`` integers from ``least`` to ``most``; ``expected`` names them for messages."""
    return Option(default, f"{expected} from {least} to {most}",
                  lambda value: _is_list(value, lambda x: _is_integer(x, least, most), length))


def boolean(default: Any) -> Option:
    """True or False."""
    return Option(default, "True or False", lambda value: isinstance(value, bool))


def string(default: Any) -> Option:
    """A string."""
    return Option(default, "a string", lambda value: isinstance(value, str))


def names(default: Any) -> Option:
    """A list of names."""
    return Option(default, "a list of names", lambda value: _is_list(value, lambda x: isinstance(x, str)))


def choice(default: Any, choices: Iterable[str]) -> Option:
    """One of several names."""
    choices = tuple(choices)
    return Option(default, f"one of {', '.join(choices)}", lambda value: isinstance(value, str) and value in choices,
                  choices)


def regex(default: Any) -> Option:
    """A regular expression."""
    return Option(default, "a regular expression", _is_regex)


def mapping(default: Any) -> Option:
    """A dict that is checked by a schema of its own."""
    return Option(default, "a dict", lambda value: isinstance(value, dict))


def mappings(default: Any) -> Option:
    """A list of dicts that are checked by a schema of their own."""
    return Option(default, "a list of dicts", lambda value: _is_list(value, lambda x: isinstance(x, dict)))


def one_or_more(option: Option) -> Option:
    """The same, or a non-empty list of such values."""
    return option._replace(expected=f"{option.expected}, or a list of such values",
                           is_valid=lambda value: option.is_valid(value) or (_is_list(value, option.is_valid)
                                                                             and len(value) > 0))


def optional(option: Option) -> Option:
    """The same, or None."""
    return option._replace(expected=f"None or {option.expected}",
                           is_valid=lambda value: value is None or option.is_valid(value))


def _shown(value):
    """A value for a message, shortened."""
    try:
        text = repr(value)
    except ValueError:  # Python refuses to print integers of thousands of digits
        text = "an integer of thousands of digits"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def _is_integer(value, least, most):
    return isinstance(value, Integral) and not isinstance(value, bool) and least <= value <= most


def _is_number(value, least, most):
    # The limits exclude infinities, and comparisons with nan are False.
    return isinstance(value, Real) and not isinstance(value, bool) and bool(least <= value <= most)


def _is_regex(value):
    try:
        return isinstance(value, str) and re.compile(value) is not None
    except re.error:
        return False


def _is_list(value, is_valid, length=None):
    return (isinstance(value, list | tuple) and (length is None or len(value) == length)
            and all(is_valid(entry) for entry in value))
