"""Configurations: reading them, command-line overrides, and validation.

A checked configuration is a nested dict of plain values, so that it can be compared, hashed and written as JSON.
"""

import ast
import contextlib
import hashlib
import json
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

from uvos_jax.config_schema import (
    REQUIRED,
    check_options,
    choice,
    fraction,
    integer,
    mapping,
    mappings,
    names,
    optional,
    plain,
    regex,
    string,
)
from uvos_jax.data.storage.store import SYNTHETIC_OPTIONS
from uvos_jax.errors import UserError, nearest_hint
from uvos_jax.training.config_files import find_config, imported

_SECTION = optional(mapping(None))
# All top-level keys, with their allowed values and defaults.
OPTIONS = {
    "model": mapping(REQUIRED), "phases": mappings(REQUIRED), "batch_size": integer(REQUIRED, 1),
    "optimizer": mapping(REQUIRED), "schedule": mapping(REQUIRED), "init": mapping({}), "data": mapping({}),
    "seed": integer(0, 0, 2**32 - 1), "precision": choice("float32", ("float32", "bfloat16")),
    "launcher": choice("pmap", ("pmap", "shard_map", "jit")),
    "batch_norm": choice("sync", ("sync", "local", "frozen")), "accumulate": integer(1, 1),
    "ema_decay": optional(fraction(None, one=False)), "log_every": integer(50, 1), "checkpoint_every": integer(1000, 1),
    "keep": integer(2, 1), "validate": _SECTION, "data_dir": optional(string(None)),
}
PHASE = {
    "name": string(None), "steps": integer(REQUIRED, 1), "data": _SECTION, "optimizer": _SECTION, "schedule": _SECTION,
    "model": _SECTION, "batch_norm": OPTIONS["batch_norm"], "transfer": optional(mappings(None)),
}
INIT = {name: optional(string(None)) for name in ("backbone", "target_backbone", "weights")}
VALIDATE = {
    "every": integer(REQUIRED, 0), "name": optional(string(None)), "split": optional(string(None)),
    "only": optional(names(None)), "size": optional(integer(None, 1, 2**15 - 1)), "synthetic": _SECTION,
    "phases": optional(names(None)),
}
TRANSFER = {"from": regex(REQUIRED), "to": string(REQUIRED)}
# Keys that a resumed run may change: they affect neither the batches nor the network nor its updates.
CHANGEABLE = ("launcher", "log_every", "checkpoint_every", "keep", "validate", "data_dir")
OWN_DATASET = "folder/own"  # name of the dataset converted from the user's folder of clips
_OWN_FOLDER = "data=folder:"
_MOST_STEPS = 2**31 - 1  # steps are counted in int32


def own_folder(overrides: Sequence[str]) -> str | None:
    """Returns the user's folder of clips: the path of the last override ``data=folder:PATH``, or None."""
    return next((entry.removeprefix(_OWN_FOLDER) for entry in reversed(overrides) if entry.startswith(_OWN_FOLDER)),
                None)


def load_config(spec: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Reads a configuration file, applies the overrides and checks the result.

    Args:
        spec: ``NAME``, a shipped recipe such as ``default``, or ``path/to/file.py``; with ``:PRESET``, the argument of
            the file's ``get_config``.
        overrides: ``"a.b=VALUE"``, see ``override``. With ``data=folder:PATH`` the configuration is
            ``fine_tune(OWN_DATASET)`` of the file, to which the other overrides apply.

    Returns:
        A complete configuration, see ``check``.

    Raises:
        UserError: The file, an override or the result cannot be used.
    """
    path, preset = find_config(spec)
    try:
        with imported(path) as module:
            get_config = module.get_config
            if own_folder(overrides) is None:
                config = plain(get_config(preset) if preset else get_config())
            else:
                config = plain(_fine_tuning(module, path, preset))
    except UserError:
        raise
    except (Exception, SystemExit) as error:
        raise UserError(f"The configuration '{spec}' cannot be read: {type(error).__name__}: {error}.") from error
    if not isinstance(config, dict):
        raise UserError(f"get_config in '{path}' must return a ConfigDict.")
    # Fill in defaults first, so that overrides can change keys that the file omits.
    config = {key: plain(option.default) for key, option in OPTIONS.items() if option.default is not REQUIRED} | config
    for entry in overrides:
        if not entry.startswith(_OWN_FOLDER):
            override(config, entry)
    return check(config)


def override(config: dict[str, Any], entry: str) -> None:
    """Changes one value of a plain configuration in place.

    Args:
        config: Nested dicts and lists.
        entry: ``"a.b=VALUE"``. The parent ``a`` must exist; ``b`` may be a new key of a nested dict, whose own check
            knows the valid names. Numbers index lists (``phases.0.steps=100``). The value is a Python literal or plain
            text and must have the type of the value it replaces, with these exceptions: an integer may replace a
            fraction, None may replace anything, and anything may replace None.

    Raises:
        UserError: The key is unknown, or the value has another type.
    """
    name, equals, text = entry.partition("=")
    if not name.isprintable():
        raise UserError(f"--config.{name!r} is not a valid name. Write --config.NAME=VALUE.")
    if not equals:
        raise UserError(f"--config.{name} has no value. Write --config.{name}=VALUE.")
    *parents, last = name.split(".")
    inside = config
    for depth, key in enumerate([*parents, last]):
        if isinstance(inside, list):
            known = [str(i) for i in range(len(inside))]
        else:
            known = list(inside) if isinstance(inside, dict) else []
        is_new = (isinstance(inside, dict) and depth == len(parents) and key.isidentifier()
                  and (parents or key in OPTIONS))
        if key not in known and not is_new:
            parent = ".".join(name.split(".")[:depth])
            raise UserError(f"The configuration has no '{name}'{f' ({parent} has no {key})' if parent else ''}."
                            f"{nearest_hint(key, known if parents else OPTIONS)}")
        key = int(key) if isinstance(inside, list) else key
        if depth < len(parents):
            inside = inside[key]
    exists = isinstance(inside, list) or key in inside
    inside[key] = _parse_value(name, text, inside[key] if exists else None)


def check(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a complete plain configuration: defaults filled in, keys and simple values checked.

    Raises:
        UserError: A key is missing or unknown, or its value cannot be used; the message names it.
    """
    config = plain(check_options(config, OPTIONS, ""))
    try:
        json.dumps(config)
    except (TypeError, ValueError) as error:  # ValueError for integers of thousands of digits
        raise UserError(f"The configuration may hold numbers, text, lists and dicts only: {error}.") from None
    if not isinstance(config["model"].get("name"), str):
        raise UserError("The configuration's model must be a dict with a name.")
    check_options(config["init"], INIT, "init")
    if config["validate"] is not None:
        check_options(config["validate"], VALIDATE, "validate")
        if config["validate"].get("synthetic") is not None:
            check_options(config["validate"]["synthetic"], SYNTHETIC_OPTIONS, "validate.synthetic")
    if not config["phases"]:
        raise UserError("The configuration's phases must be a list of at least one phase.")
    for number, phase in enumerate(config["phases"]):
        _check_phase(number, phase)
    phase_names = [phase.get("name") for phase in config["phases"]]
    for name in (config["validate"] or {}).get("phases") or ():
        if name not in phase_names:
            raise UserError(f"The validate configuration's phases name '{name}', which is no phase."
                            f"{nearest_hint(name, [other for other in phase_names if other])}")
    if sum(phase["steps"] for phase in config["phases"]) > _MOST_STEPS:
        raise UserError(f"The phases have more than {_MOST_STEPS} steps together.")
    return config


def config_hash(config: Mapping[str, Any]) -> str:
    """Returns a hash of the values that a resumed run must not change, 16 hexadecimal digits."""
    fixed = {key: value for key, value in config.items() if key not in CHANGEABLE}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:16]


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Returns the dotted names of the fixed values in which two configurations differ."""
    flat = [_flatten({key: value for key, value in plain(c).items() if key not in CHANGEABLE}) for c in (old, new)]
    return sorted(key for key in flat[0].keys() | flat[1].keys() if flat[0].get(key) != flat[1].get(key))


def _fine_tuning(module, path, preset):
    if preset or not hasattr(module, "fine_tune"):
        what = f"The preset '{preset}' of '{path.name}'" if preset else f"'{path.name}'"
        raise UserError(f"{what} cannot train on a folder of clips (--config.data=folder:PATH): it has no fine_tune"
                        " function. Use the recipe 'default'.")
    return module.fine_tune(OWN_DATASET)


def _check_phase(number, phase):
    check_options(phase, PHASE, f"phases.{number}")
    rules = phase.get("transfer") or ()
    if rules and number == 0:
        raise UserError("phases.0 has 'transfer', but no earlier phase to copy parameters from. Remove it.")
    for rule in rules:
        check_options(rule, TRANSFER, f"phases.{number}.transfer")
        try:
            re.sub(rule["from"], rule["to"], "")
        except (re.error, IndexError) as error:
            raise UserError(f"phases.{number}.transfer: 'to' is {rule['to']!r}, which is not a valid replacement for"
                            f" {rule['from']!r}: {error}.") from None


def _parse_value(name, text, old):
    """Returns the text as a value of the type of ``old``."""
    try:
        with warnings.catch_warnings(action="ignore"):  # about text that is almost Python, such as '\d'
            value = plain(ast.literal_eval(text))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # all documented for literal_eval
        value = text
    if value is None:
        return None  # check() reports it where None is not allowed
    if isinstance(old, str) and not isinstance(value, str):
        value = text  # a name may be 2016
    types = {bool: "True or False", int: "an integer", float: "a number", str: "a string", dict: "a dict",
             list: "a list"}
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # the type check below refuses it
            value = float(value)
    if old is not None and type(value) is not type(old):
        raise UserError(f"--config.{name} must be {types.get(type(old), type(old).__name__)}, such as {old!r:.60};"
                        f" got {text!r:.60}.")
    return value


def _flatten(value, prefix=""):
    """Returns the leaves by dotted name; empty containers are leaves."""
    entries = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    if not entries:
        return {prefix: value}
    return {k: v for key, inner in entries
            for k, v in _flatten(inner, f"{prefix}.{key}" if prefix else str(key)).items()}
