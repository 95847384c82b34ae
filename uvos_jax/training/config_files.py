"""Python configuration files: locating them by name or path, and importing them."""

import contextlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import uvos_jax
from uvos_jax.errors import UserError, nearest_hint

_PACKAGE = "uvos_jax.configs"
_NO_RECIPES = ("__init__", "common")


def recipe_folder() -> Path:
    """Returns the folder of the shipped recipes: the package of an installed wheel, or the source tree's folder."""
    spec = importlib.util.find_spec(_PACKAGE)
    if spec is not None and spec.submodule_search_locations:
        return Path(next(iter(spec.submodule_search_locations)))
    return Path(uvos_jax.__file__).absolute().parents[1] / "configs"


def recipe_names() -> list[str]:
    """Returns the names of the shipped recipes."""
    return sorted(path.stem for path in recipe_folder().glob("*.py") if path.stem not in _NO_RECIPES)


def find_config(spec: str) -> tuple[Path, str]:
    """Splits ``NAME[:PRESET]`` or ``PATH.py[:PRESET]``.

    Args:
        spec: A shipped recipe's name or a path, and a preset.

    Returns:
        The file and the preset, ``""`` if there is none.

    Raises:
        UserError: The file or the recipe does not exist.
    """
    name, colon, preset = spec.rpartition(":")
    # A path may contain a colon.
    if not colon or spec.endswith(".py") or not (name.endswith(".py") or name.isidentifier()):
        name, preset = spec, ""
    if name.isidentifier() and not Path(name).exists():
        names = recipe_names()
        if name not in names:
            raise UserError(f"There is no configuration file or recipe '{name}'. Recipes: {', '.join(names)}."
                            f"{nearest_hint(name, names)}")
        return recipe_folder() / f"{name}.py", preset
    path = Path(name).absolute()
    if not path.is_file():
        if name in recipe_names():  # a folder of that name stands beside
            return recipe_folder() / f"{name}.py", preset
        raise UserError(f"There is no configuration file '{path}'.")
    if path.suffix != ".py":
        raise UserError(f"The configuration '{path}' must be a Python file that ends in .py.")
    return path, preset


@contextlib.contextmanager
def imported(path: Path) -> Iterator[ModuleType]:
    """Imports a configuration file as a member of a package of its folder's name.

    So ``from . import common`` and ``from FOLDER import common`` import the file's neighbors, wherever the program was
    started and whatever other folders of that name have been imported. Every load executes the files again.
    """
    folder = path.parent
    package = folder.name if folder.name.isidentifier() and folder.name not in sys.stdlib_module_names else "_configs"

    def is_ours(name):
        return name == package or name.startswith(f"{package}.")

    # Another folder of this name may have been imported before; its modules are restored afterwards.
    others = {name: sys.modules.pop(name) for name in list(sys.modules) if is_ours(name)}
    importlib.invalidate_caches()
    try:
        _execute(package, folder / "__init__.py", folder)
        yield _execute(f"{package}.{path.stem}", path)
    finally:
        for name in [name for name in sys.modules if is_ours(name)]:
            del sys.modules[name]
        sys.modules.update(others)


def _execute(name, path, folder=None):
    """Imports a file as the module ``name``; as a package if ``folder`` is given, whose file may be missing."""
    if folder is not None and not path.is_file():
        module = ModuleType(name)
        module.__path__ = [str(folder)]
        sys.modules[name] = module
        return module
    spec = importlib.util.spec_from_file_location(
        name, path, submodule_search_locations=None if folder is None else [str(folder)])
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
