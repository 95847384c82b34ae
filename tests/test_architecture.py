"""Dependencies between subpackages, use of heavy packages, file lengths and class names."""

import ast
import inspect
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import uvos_jax
from tests.helpers.paths import REPOSITORY

ROOT = Path(uvos_jax.__file__).parent
# The other subpackages and modules that each one may import. Leaves (no JAX) come first.
ALLOWED = {
    "video": set(),
    "data": {"video"},
    "evaluation": {"video", "data"},
    "ops": set(),
    "nn": {"ops"},
    "models": {"nn", "ops"},
    "weights": {"models", "nn", "ops"},
    "inference": {"weights", "models", "nn", "ops", "video"},
    "training": {"inference", "weights", "models", "nn", "ops", "video", "data", "evaluation", "progress"},
    "cli": {"training", "data", "evaluation", "inference", "weights", "models", "video", "progress"},
    "progress": set(),
    "__main__": {"cli"},
    "__init__": {"inference", "video", "api"},
    "api": {"inference"},
    "errors": set(),
    "extras": set(),
    "config_schema": set(),
    "color_wheel": set(),
    "atomic_io": set(),
    "interrupts": set(),
    "labels": set(),
    "_version": set(),
}
EVERYWHERE = {"errors", "extras", "config_schema", "color_wheel", "atomic_io", "interrupts", "labels", "_version"}
ONLY_IN = {"torch": {"weights/files.py"}, "orbax": {"weights/checkpoints.py"}}
TENSORFLOW = {"tensorflow", "tensorflow_datasets", "array_record"}  # only in data
MODULES = sorted(ROOT.rglob("*.py"))


def _imports(path):
    """Absolute names of all imports of a module, at any depth."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def _room(path):
    return path.relative_to(ROOT).with_suffix("").parts[0]


def _forbidden(path):
    """The imports of a module that the tables above do not allow."""
    room = _room(path)
    for name in _imports(path):
        package, *inner = name.split(".")
        if package == "uvos_jax" and inner and inner[0] in ALLOWED and not inner[0].startswith("__") and (
                inner[0] not in {room} | ALLOWED[room] | EVERYWHERE):
            yield name
        if package in TENSORFLOW and room != "data":
            yield name
        if package in ONLY_IN and str(path.relative_to(ROOT)) not in ONLY_IN[package]:
            yield name


def test_imports_follow_the_dependency_table():
    forbidden = {str(path.relative_to(ROOT)): names for path in MODULES if (names := list(_forbidden(path)))}
    assert not forbidden


def test_dependency_table_is_complete():
    assert {_room(path) for path in MODULES} == set(ALLOWED)


def test_files_are_short():
    lengths = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in MODULES}
    assert not {path: length for path, length in lengths.items() if length > 425}


@pytest.mark.slow
@pytest.mark.parametrize(("code", "absent"), [
    ("import uvos_jax", ("jax", "numpy", "cv2", "tensorflow", "torch")),
    ("import uvos_jax.evaluation.protocols",
     ("jax", "tensorflow", "tensorflow_datasets", "torch", "av", "PIL", "matplotlib", "pycocotools")),
    ("import uvos_jax.video", ("jax", "tensorflow", "torch", "av", "PIL")),
    ("import uvos_jax.cli", ("jax", "cv2", "tensorflow", "torch")),
    ("from uvos_jax import load", ("jax", "flax", "numpy", "cv2", "tensorflow", "torch")),
    # Only what ``load`` needs for packaged weights.
    ("from uvos_jax import Segmenter",
     ("tensorflow", "tensorflow_datasets", "torch", "matplotlib", "av", "PIL", "scipy", "pycocotools", "orbax",
      "tensorstore", "optax", "ml_collections")),
])
def test_imports_do_not_load_heavy_packages(code, absent):
    check = f"{code}\nimport sys\nprint([m for m in {absent!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_public_load_has_the_signature_of_segmenter_load():
    from uvos_jax.inference import segmenter

    public, inner = (inspect.signature(function).parameters.values() for function in (uvos_jax.load, segmenter.load))
    assert [(p.name, p.kind, p.default) for p in public] == [(p.name, p.kind, p.default) for p in inner]


@pytest.mark.slow
def test_imports_do_not_initialize_jax_backends():
    # The processes of a pod must connect before JAX initializes its backends.
    code = ("import uvos_jax.training.loop, uvos_jax.inference, jax._src.xla_bridge as bridge\n"
            "print(bridge.backends_are_initialized())")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_requirements_txt_contains_core_and_train_dependencies():
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    asked = {*project["dependencies"], *project["optional-dependencies"]["train"]}
    lines = (line.split(" #")[0].strip() for line in (REPOSITORY / "requirements.txt").read_text().splitlines())
    listed = {line for line in lines if line and not line.startswith("#")}
    assert asked <= listed <= asked | set(project["optional-dependencies"]["test"])
    wanted = {"jax", "flax", "optax", "orbax-checkpoint", "tensorflow-datasets", "numpy", "ml-collections", "pytest"}
    assert wanted <= {re.split(r"[><=; ]", line)[0] for line in listed}


def test_typer_minimum_supports_literal_options():
    # Older versions stop every command with "Type not yet supported: typing.Literal".
    dependencies = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]
    minimum = next(re.match(r"typer>=(\d+)\.(\d+)", line) for line in dependencies if line.startswith("typer"))
    assert tuple(map(int, minimum.groups())) >= (0, 19)


def test_core_dependencies_exclude_training_packages():
    dependencies = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {re.split(r"[><=; ]", line)[0] for line in dependencies}
    assert not names & {"tensorflow", "tensorflow-datasets", "ml-collections", "optax", "array_record", "tensorboardX"}


# Top-level modules of the core dependencies, and of the extras with the subpackages that may import them.
CORE_MODULES = {"jax": "jax", "flax": "flax", "orbax": "orbax-checkpoint", "numpy": "numpy", "scipy": "scipy",
                "safetensors": "safetensors", "cv2": "opencv-python-headless", "av": "av", "PIL": "pillow",
                "matplotlib": "matplotlib", "pycocotools": "pycocotools", "typer": "typer", "rich": "rich",
                "filelock": "filelock"}
EXTRA_MODULES = {"optax": {"training"}, "ml_collections": set(), "tensorboardX": {"training"}, "torch": {"weights"},
                 "tensorflow": {"data"}, "tensorflow_datasets": {"data"}, "array_record": {"data"}}


def test_every_imported_package_is_a_dependency():
    dependencies = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["dependencies"]
    assert {re.split(r"[><=; ]", line)[0] for line in dependencies} == set(CORE_MODULES.values())
    for path in MODULES:
        for name in {name.split(".")[0] for name in _imports(path)} - sys.stdlib_module_names - {"uvos_jax"}:
            assert name in CORE_MODULES or _room(path) in EXTRA_MODULES[name], f"{path} imports {name}"


def test_public_classes_have_distinct_names():
    classes: dict[str, list[str]] = {}
    for path in MODULES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                classes.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    shared = {name: places for name, places in classes.items() if len(places) > 1 and name not in ("Model", "State")}
    assert not shared  # each system has its own State
