"""Configurations: a Python file with ``get_config``, changed from the command line, checked and made plain.

What leaves this module is a nested dict of plain values, so that it can be compared, hashed and written as JSON.
"""

import ast
import contextlib
import hashlib
import importlib.util
import json
import re
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
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

_SECTION = optional(mapping(None))
# All keys, with what they may be and what they are if the file leaves them out.
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
# What a run that goes on may change: neither the batches nor the network nor its updates follow from these.
CHANGEABLE = ("launcher", "log_every", "checkpoint_every", "keep", "validate", "data_dir")
OWN_DATASET = "folder/own"  # what a folder of one's own clips is called once it is converted
_OWN_FOLDER = "data=folder:"
_MOST_STEPS = 2**31 - 1  # they are counted in int32


def own_folder(overrides: Sequence[str]) -> str | None:
    """The folder of one's own clips that ``data=folder:PATH`` among the overrides names, the last one."""
    return next((entry.removeprefix(_OWN_FOLDER) for entry in reversed(overrides) if entry.startswith(_OWN_FOLDER)),
                None)


def load_config(spec: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Reads a configuration file, applies the overrides and checks the result.

    Args:
      spec: ``path/to/file.py`` or ``path/to/file.py:preset``; the preset is the argument of its ``get_config``.
      overrides: ``"a.b=VALUE"``, see :func:`override`. With ``data=folder:PATH`` it is what the file's
        ``fine_tune(dataset)`` makes of ``OWN_DATASET``, and the other overrides change that.

    Returns:
      A complete configuration, see :func:`check`.

    Raises:
      UserError: if the file, an override or the result cannot be used.
    """
    path, colon, preset = spec.rpartition(":")
    if not colon or not path.endswith(".py"):
        path, preset = spec, ""
    path = Path(path).absolute()
    if not path.is_file():
        raise UserError(f"There is no configuration file '{path}'.")
    if path.suffix != ".py":
        raise UserError(f"The configuration '{path}' must be a Python file that ends in .py.")
    with _importing_from(path.parent):
        module_spec = importlib.util.spec_from_file_location(f"_uvos_config_{path.stem}", path)
        module = importlib.util.module_from_spec(module_spec)
        try:
            module_spec.loader.exec_module(module)
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
    # Whatever the file leaves out can be overridden all the same.
    config = {key: plain(option.default) for key, option in OPTIONS.items() if option.default is not REQUIRED} | config
    for entry in overrides:
        if not entry.startswith(_OWN_FOLDER):
            override(config, entry)
    return check(config)


def override(config: dict[str, Any], entry: str) -> None:
    """Changes one value of a plain configuration in place.

    Args:
      config: nested dicts and lists.
      entry: ``"a.b=VALUE"``. Where the key is, must exist; the key may be new to a dict inside of the configuration,
        whose own check knows all names. Numbers name the entries of a list (``phases.0.steps=100``). The value is a
        Python literal, or text as it stands, and must be of the type of what it replaces; an integer may stand
        for a fraction, None for anything, and anything may replace None.

    Raises:
      UserError: for an unknown key or a value of another type.
    """
    name, equals, text = entry.partition("=")
    if not name.isprintable():
        raise UserError(f"--config.{name!r} is not the name of a value.")
    if not equals:
        raise UserError(f"--config.{name} wants a value: --config.{name}=VALUE.")
    *parents, last = name.split(".")
    inside = config
    for done, key in enumerate([*parents, last]):
        if isinstance(inside, list):
            known = [str(i) for i in range(len(inside))]
        else:
            known = list(inside) if isinstance(inside, dict) else []
        new = isinstance(inside, dict) and done == len(parents) and key.isidentifier() and (parents or key in OPTIONS)
        if key not in known and not new:
            place = ".".join(name.split(".")[:done])
            raise UserError(f"The configuration has no '{name}'{f' ({place} has no {key})' if place else ''}."
                            f"{nearest_hint(key, known if parents else OPTIONS)}")
        key = int(key) if isinstance(inside, list) else key
        if done < len(parents):
            inside = inside[key]
    there = isinstance(inside, list) or key in inside
    inside[key] = _value(name, text, inside[key] if there else None)


def check(config: Mapping[str, Any]) -> dict[str, Any]:
    """A complete plain configuration: defaults filled in, keys and simple values checked.

    Raises:
      UserError: naming the key that is missing, unknown or of no use.
    """
    config = plain(check_options(config, OPTIONS, ""))
    try:
        json.dumps(config)
    except (TypeError, ValueError) as error:  # the latter for integers of thousands of digits
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
    called = [phase.get("name") for phase in config["phases"]]
    for name in (config["validate"] or {}).get("phases") or ():
        if name not in called:
            raise UserError(f"The validate configuration's phases name '{name}', which is no phase."
                            f"{nearest_hint(name, [other for other in called if other])}")
    if sum(phase["steps"] for phase in config["phases"]) > _MOST_STEPS:
        raise UserError(f"The phases have more than {_MOST_STEPS} steps together.")
    return config


def config_hash(config: Mapping[str, Any]) -> str:
    """Hash of what a run may not change on the way, 16 hexadecimal digits."""
    fixed = {key: value for key, value in config.items() if key not in CHANGEABLE}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:16]


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Dotted names of the fixed values in which two configurations differ."""
    flat = [_flat({key: value for key, value in plain(c).items() if key not in CHANGEABLE}) for c in (old, new)]
    return sorted(key for key in flat[0].keys() | flat[1].keys() if flat[0].get(key) != flat[1].get(key))


def _fine_tuning(module, path, preset):
    if preset or not hasattr(module, "fine_tune"):
        what = f"The preset '{preset}' of '{path.name}'" if preset else f"'{path.name}'"
        raise UserError(f"{what} does not say how to learn from a folder of clips (--config.data=folder:PATH);"
                        " configs/default.py does.")
    return module.fine_tune(OWN_DATASET)


def _check_phase(number, phase):
    check_options(phase, PHASE, f"phases.{number}")
    rules = phase.get("transfer") or ()
    if rules and number == 0:
        raise UserError("The phases.0 configuration has 'transfer', but there is no phase before it to copy parameters from.")
    for rule in rules:
        check_options(rule, TRANSFER, f"phases.{number}.transfer")
        try:
            re.sub(rule["from"], rule["to"], "")
        except (re.error, IndexError) as error:
            raise UserError(f"The phases.{number}.transfer configuration's to is {rule['to']!r}, which cannot replace what"
                            f" {rule['from']!r} matches: {error}.") from None


def _value(name, text, old):
    """The text as a value of the kind of ``old``."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of text that is nearly Python, such as '\d'
            value = plain(ast.literal_eval(text))
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # all that it is documented to raise
        value = text
    if value is None:
        return None  # where it means nothing, the check says so
    if isinstance(old, str) and not isinstance(value, str):
        value = text  # 2016 is a fine name
    kinds = {bool: "True or False", int: "an integer", float: "a number", str: "a string", dict: "a dict",
             list: "a list"}
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):  # then it stays an integer, and is refused
            value = float(value)
    if old is not None and type(value) is not type(old):
        raise UserError(f"--config.{name} wants {kinds.get(type(old), type(old).__name__)}, such as {old!r:.60};"
                        f" got {text!r:.60}.")
    return value


def _flat(value, prefix=""):
    """Leaves by dotted name; empty containers are leaves."""
    entries = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    if not entries:
        return {prefix: value}
    return {k: v for key, inner in entries for k, v in _flat(inner, f"{prefix}.{key}" if prefix else str(key)).items()}


@contextlib.contextmanager
def _importing_from(folder):
    """Lets a file import its neighbors as ``folder_name.neighbor``, from wherever the program was started."""
    def ours(name):
        return name == folder.name or name.startswith(f"{folder.name}.")

    # Another folder of this name may have been imported before; it is put back afterwards.
    others = {name: sys.modules.pop(name) for name in list(sys.modules) if ours(name)}
    sys.path.insert(0, str(folder.parent))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path.remove(str(folder.parent))
        for name in [name for name in sys.modules if ours(name)]:
            del sys.modules[name]
        sys.modules.update(others)
