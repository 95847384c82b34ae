"""Configurations: a Python file with ``get_config``, changed from the command line, checked and made plain.

What leaves this module is a nested dict of plain values, so that it can be compared, hashed and written as JSON.
"""

import ast
import contextlib
import hashlib
import importlib.util
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from uvos_jax.errors import UserError, nearest_hint

# All keys, with what they are if the file leaves them out. None: the file must have it, unless listed as OPTIONAL.
DEFAULTS = {
    "model": None, "phases": None, "batch_size": None, "optimizer": None, "schedule": None,
    "init": {}, "data": {}, "seed": 0, "precision": "float32", "launcher": "pmap", "batch_norm": "sync",
    "accumulate": 1, "ema_decay": None, "log_every": 50, "checkpoint_every": 1000, "keep": 2, "validate": None,
    "data_dir": None,
}
OPTIONAL = ("ema_decay", "validate", "data_dir")
PHASE_KEYS = ("name", "steps", "data", "optimizer", "schedule", "model", "batch_norm", "carry")
CHOICES = {"precision": ("float32", "bfloat16"), "launcher": ("pmap", "shard_map", "jit"),
           "batch_norm": ("sync", "local", "frozen")}
# What a run that goes on may change: neither the batches nor the network nor its updates follow from these.
CHANGEABLE = ("launcher", "log_every", "checkpoint_every", "keep", "validate", "data_dir")
_COUNTS = ("batch_size", "accumulate", "log_every", "checkpoint_every", "keep")


def load_config(spec: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Reads a configuration file, applies the overrides and checks the result.

    Args:
      spec: ``path/to/file.py`` or ``path/to/file.py:preset``; the preset is the argument of its ``get_config``.
      overrides: ``"a.b=VALUE"``, see :func:`override`.

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
    with _importing_from(path.parent):
        module_spec = importlib.util.spec_from_file_location(f"_uvos_config_{path.stem}", path)
        module = importlib.util.module_from_spec(module_spec)
        try:
            module_spec.loader.exec_module(module)
            get_config = module.get_config
            config = get_config(preset) if preset else get_config()
        except UserError:
            raise
        except Exception as error:
            raise UserError(f"The configuration '{spec}' cannot be read: {type(error).__name__}: {error}.") from error
    config = plain(config)
    if not isinstance(config, dict):
        raise UserError(f"get_config in '{path}' must return a ConfigDict.")
    # Whatever the file leaves out can be overridden all the same.
    config = {key: value for key, value in DEFAULTS.items() if value is not None or key in OPTIONAL} | config
    for entry in overrides:
        override(config, entry)
    return check(config)


def override(config: dict[str, Any], entry: str) -> None:
    """Changes one value of a plain configuration in place.

    Args:
      config: nested dicts and lists.
      entry: ``"a.b=VALUE"``. The key must exist; numbers name the entries of a list (``phases.0.steps=100``). The
        value is a Python literal, or text as it stands, and must be of the type of what it replaces; a whole number
        may stand for a fraction, and anything may replace None.

    Raises:
      UserError: for an unknown key or a value of another type.
    """
    name, equals, text = entry.partition("=")
    if not equals:
        raise UserError(f"--config.{name} wants a value: --config.{name}=VALUE.")
    *parents, last = name.split(".")
    inside = config
    for done, key in enumerate([*parents, last]):
        if isinstance(inside, list):
            known = [str(i) for i in range(len(inside))]
        else:
            known = list(inside) if isinstance(inside, dict) else []
        if key not in known:
            place = ".".join(name.split(".")[:done])
            raise UserError(f"The configuration has no '{name}'{f' ({place} has no {key})' if place else ''}."
                            f"{nearest_hint(key, known)}")
        key = int(key) if isinstance(inside, list) else key
        if done < len(parents):
            inside = inside[key]
    inside[key] = _value(name, text, inside[key])


def check(config: Mapping[str, Any]) -> dict[str, Any]:
    """A complete plain configuration: defaults filled in, keys and simple values checked.

    Raises:
      UserError: naming the key that is missing, unknown or of no use.
    """
    config = plain(config)
    for key in config:
        if key not in DEFAULTS:
            raise UserError(f"The configuration knows no key '{key}'.{nearest_hint(key, DEFAULTS)}")
    config = {key: config.get(key, default) for key, default in plain(DEFAULTS).items()}
    for key, value in config.items():
        if value is None and key not in OPTIONAL:
            raise UserError(f"The configuration lacks '{key}'.")
        if key in CHOICES and value not in CHOICES[key]:
            raise UserError(f"The configuration's {key} is {value!r};{nearest_hint(str(value), CHOICES[key])}"
                            f" known are {', '.join(CHOICES[key])}.")
        if key in _COUNTS and not _is_count(value):
            raise UserError(f"The configuration's {key} must be a whole number above 0, not {value!r}.")
    try:
        json.dumps(config)
    except TypeError as error:
        raise UserError(f"The configuration may hold numbers, text, lists and dicts only: {error}.") from None
    if not isinstance(config["model"], dict) or "name" not in config["model"]:
        raise UserError("The configuration's model must be a dict with a name.")
    if not isinstance(config["seed"], int) or config["seed"] < 0:
        raise UserError(f"The configuration's seed must be a whole number, not {config['seed']!r}.")
    decay = config["ema_decay"]
    if decay is not None and not (isinstance(decay, (int, float)) and 0 <= decay < 1):
        raise UserError(f"The configuration's ema_decay must be None or a number from 0 to 1, not {decay!r}.")
    _known("init", config["init"], ("backbone", "weights"))
    if config["validate"] is not None:
        _known("validate", config["validate"], ("every", "name", "split", "only", "size", "made_up"))
        if not _is_count(config["validate"].get("every")) and config["validate"].get("every") != 0:
            raise UserError("The configuration's validate.every must be a number of steps, or 0 for never.")
    if not isinstance(config["phases"], list) or not config["phases"]:
        raise UserError("The configuration's phases must be a list of at least one phase.")
    for number, phase in enumerate(config["phases"]):
        _known(f"phases.{number}", phase, PHASE_KEYS)
        if not _is_count(phase.get("steps")):
            raise UserError(f"phases.{number} of the configuration needs steps, a whole number above 0.")
    return config


def plain(value: Any) -> Any:
    """Copies nested ConfigDicts, mappings and sequences to dicts and lists."""
    if hasattr(value, "to_dict"):
        value = value.to_dict()
    if isinstance(value, Mapping):
        return {str(key): plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(entry) for entry in value]
    return value


def config_hash(config: Mapping[str, Any]) -> str:
    """Hash of what a run may not change on the way, 16 hexadecimal digits."""
    fixed = {key: value for key, value in config.items() if key not in CHANGEABLE}
    return hashlib.sha256(json.dumps(fixed, sort_keys=True).encode()).hexdigest()[:16]


def changed_keys(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    """Dotted names of the fixed values in which two configurations differ."""
    flat = [_flat({key: value for key, value in plain(c).items() if key not in CHANGEABLE}) for c in (old, new)]
    return sorted(key for key in flat[0].keys() | flat[1].keys() if flat[0].get(key) != flat[1].get(key))


def _known(place, entries, keys):
    if not isinstance(entries, dict):
        raise UserError(f"The configuration's {place} must be a dict.")
    for key in entries:
        if key not in keys:
            raise UserError(f"The configuration's {place} knows no key '{key}'.{nearest_hint(key, keys)}"
                            f" Known: {', '.join(keys)}.")


def _value(name, text, old):
    """The text as a value of the kind of ``old``."""
    try:
        value = plain(ast.literal_eval(text))
    except (ValueError, SyntaxError):
        value = text
    if isinstance(old, str) and not isinstance(value, str):
        value = text  # 2016 is a fine name
    kinds = {bool: "True or False", int: "a whole number", float: "a number", str: "text", dict: "a dict",
             list: "a list"}
    if isinstance(old, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if old is not None and type(value) is not type(old):
        raise UserError(f"--config.{name} wants {kinds.get(type(old), type(old).__name__)}, such as {old!r};"
                        f" got '{text}'.")
    return value


def _is_count(value):
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _flat(value, prefix=""):
    """Leaves by dotted name; empty containers are leaves."""
    entries = list(value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ())
    if not entries:
        return {prefix: value}
    return {k: v for key, inner in entries for k, v in _flat(inner, f"{prefix}.{key}" if prefix else str(key)).items()}


@contextlib.contextmanager
def _importing_from(folder):
    """Lets a file import its neighbours as ``folder_name.neighbour``, from wherever the program was started."""
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
