"""Lists the packages; everything else is in pyproject.toml.

The recipes are in ``configs/`` at the top of the repository and are installed as ``uvos_jax.configs``.
"""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["uvos_jax*"]), "uvos_jax.configs"],
    package_dir={"uvos_jax.configs": "configs"},
)
