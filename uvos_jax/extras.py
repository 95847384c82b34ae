"""Optional dependencies, which ``pip install 'uvos-jax[EXTRA]'`` adds to the core ones."""

import importlib.util

from uvos_jax.errors import UserError


def require(extra: str, task: str, *modules: str) -> None:
    """Check that the modules of an extra are installed; imports none of them.

    Args:
        extra: Name of the extra in ``pyproject.toml``, such as ``"train"``.
        task: What needs the modules, as the subject of a sentence, such as ``"Training"``.
        *modules: Top-level modules that ``task`` imports.

    Raises:
        UserError: A module is missing. The message names it and the command that installs the extra.
    """
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise UserError(f"{task} needs {', '.join(missing)}, not installed here. Run: {install_command(extra)}")


def install_command(extra: str) -> str:
    """Return the command that installs the package with an extra."""
    return f"pip install 'uvos-jax[{extra}]'"
