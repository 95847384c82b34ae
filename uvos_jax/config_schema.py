"""What the values of a configuration may be, and the one check that names a wrong one.

A table ``{key: Option}`` describes a dict of a configuration; it stands where the values are used.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from numbers import Integral, Real
from typing import Any, NamedTuple

from uvos_jax.errors import UserError, nearest_hint

REQUIRED = object()  # default of an option that has none
_LARGEST = 1e30  # of numbers: float32 ends soon after
_LONGEST_SHOWN = 100  # characters of a value in a message


class Option(NamedTuple):
    """One option of a configuration.

    Attributes:
        default: Its value where the configuration does not say it, or ``REQUIRED``.
        wants: What a value must be, for messages.
        fits: Whether a value is one.
        known: All values, where they are names.
    """

    default: Any
    wants: str
    fits: Callable[[Any], bool]
    known: tuple[str, ...] = ()


def check_options(given: Any, table: Mapping[str, Option], what: str) -> dict[str, Any]:
    """Checks a dict of a configuration and fills in the defaults.

    Args:
        given: A dict or ConfigDict.
        table: Its options.
        what: Its place, for messages; empty for the whole configuration.

    Returns:
        A plain dict with every key of the table.

    Raises:
        UserError: It is no dict, a key is unknown or missing, or a value cannot be used; the message names the key.
    """
    given, name = plain(given), f"The {what} configuration" if what else "The configuration"
    if not isinstance(given, dict):
        raise UserError(f"{name} must be a dict, not {_shown(given)}.")
    for key in given:
        if key not in table:
            raise UserError(f"{name} knows no {_shown(str(key))}; it knows {', '.join(table) or 'nothing'}."
                            f"{nearest_hint(str(key), table)}")
    filled = {key: given.get(key, option.default) for key, option in table.items()}
    for key, value in filled.items():
        option = table[key]
        if value is REQUIRED or (value is None and option.default is REQUIRED):
            raise UserError(f"{name} does not say '{key}': {option.wants}.")
        if key in given and not option.fits(value):
            raise UserError(f"{name}'s {key} must be {option.wants}, not {_shown(value)}."
                            f"{nearest_hint(value if isinstance(value, str) else '', option.known)}")
    return filled


def check_named(given: Any, rows: Mapping[str, Mapping[str, Option]], what: str, key: str = "name"
                ) -> tuple[str, dict[str, Any]]:
    """Checks a dict such as ``{"name": ..., option: value}``, whose options depend on the name.

    Args:
        given: The dict.
        rows: The options of every name.
        what: Its place, for messages.
        key: Where the name is.

    Returns:
        The name, and all its options.

    Raises:
        UserError: See ``check_options``; or there is no such name.
    """
    given = plain(given)
    name = given.get(key) if isinstance(given, dict) else None
    if not (isinstance(name, str) and name in rows):
        raise UserError(f"There is no {what} {_shown(name)}; choose {', '.join(rows)} as its '{key}'."
                        f"{nearest_hint(name if isinstance(name, str) else '', rows)}")
    return name, check_options({option: value for option, value in given.items() if option != key}, rows[name],
                               f"{what} {name}")


def plain(value: Any) -> Any:
    """Copies nested ConfigDicts, mappings and sequences to dicts and lists."""
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    return [plain(entry) for entry in value] if isinstance(value, list | tuple) else value


def whole(default: Any, least: int, most: int = 2**31 - 1) -> Option:
    """A whole number from ``least`` to ``most``; True and False are none."""
    return Option(default, f"a whole number from {least} to {most}", lambda value: _is_whole(value, least, most))


def number(default: Any, least: float = 0.0, most: float = _LARGEST) -> Option:
    """A number from ``least`` to ``most``."""
    upper = "" if most == _LARGEST else f" and at most {most:g}"
    return Option(default, f"a number of at least {least:g}{upper}", lambda value: _is_number(value, least, most))


def positive(default: Any) -> Option:
    """A number above 0."""
    return Option(default, "a number above 0", lambda value: _is_number(value, 0, _LARGEST) and value > 0)


def fraction(default: Any, *, one: bool = True) -> Option:
    """A number from 0 to 1, which is one of them or not."""
    return Option(default, f"a number from 0 to {'1' if one else 'below 1'}",
                  lambda value: _is_number(value, 0, 1) and (one or value < 1))


def span(default: Any, least: float, most: float) -> Option:
    """Two numbers from ``least`` to ``most``, the smaller one first."""
    return Option(default, f"a range [smallest, largest] of numbers from {least:g} to {most:g}",
                  lambda value: _is_list(value, lambda x: _is_number(x, least, most), 2) and value[0] <= value[1])


def size(default: Any, least: int = 1, most: int = 2**15 - 1) -> Option:
    """Height and width in pixels; OpenCV's warps end at 32767."""
    return Option(default, f"[height, width], whole numbers from {least} to {most}",
                  lambda value: _is_list(value, lambda x: _is_whole(x, least, most), 2))


def color(default: Any) -> Option:
    """Red, green and blue."""
    return Option(default, "[red, green, blue], whole numbers from 0 to 255",
                  lambda value: _is_list(value, lambda x: _is_whole(x, 0, 255), 3))


def flag(default: Any) -> Option:
    """True or False."""
    return Option(default, "True or False", lambda value: isinstance(value, bool))


def text(default: Any) -> Option:
    """Text."""
    return Option(default, "text", lambda value: isinstance(value, str))


def names(default: Any) -> Option:
    """A list of names."""
    return Option(default, "a list of names", lambda value: _is_list(value, lambda x: isinstance(x, str)))


def choice(default: Any, known: Iterable[str]) -> Option:
    """One of some names."""
    known = tuple(known)
    return Option(default, f"one of {', '.join(known)}", lambda value: isinstance(value, str) and value in known, known)


def pattern(default: Any) -> Option:
    """A regular expression."""
    return Option(default, "a regular expression", _is_pattern)


def section(default: Any) -> Option:
    """A dict, which is checked by a table of its own."""
    return Option(default, "a dict", lambda value: isinstance(value, dict))


def one_or_more(option: Option) -> Option:
    """The same, or a list of at least one of them."""
    return option._replace(wants=f"{option.wants}, or a list of such", fits=lambda value: option.fits(value) or (
        _is_list(value, option.fits) and len(value) > 0))


def sections(default: Any) -> Option:
    """A list of dicts, which are checked by a table of their own."""
    return Option(default, "a list of dicts", lambda value: _is_list(value, lambda x: isinstance(x, dict)))


def optional(option: Option) -> Option:
    """The same, or None."""
    return option._replace(wants=f"None or {option.wants}", fits=lambda value: value is None or option.fits(value))


def _shown(value):
    """A value for a message, however long it is."""
    try:
        text = repr(value)
    except ValueError:  # Python does not write whole numbers of thousands of digits
        text = "a number of thousands of digits"
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


def _is_whole(value, least, most):
    return isinstance(value, Integral) and not isinstance(value, bool) and least <= value <= most


def _is_number(value, least, most):
    # The limits leave out what is not finite; nan is within none.
    return isinstance(value, Real) and not isinstance(value, bool) and bool(least <= value <= most)


def _is_pattern(value):
    try:
        return isinstance(value, str) and re.compile(value) is not None
    except re.error:
        return False


def _is_list(value, fits, length=None):
    return (isinstance(value, list | tuple) and (length is None or len(value) == length)
            and all(fits(entry) for entry in value))
