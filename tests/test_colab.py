"""The Colab notebook is stored without outputs and runs with the library installed from a wheel."""

import json
import os
import shutil
import subprocess
import sys
import zipfile

import pytest

from tests.helpers.paths import REPOSITORY

ROOT = REPOSITORY
NOTEBOOK = ROOT / "colab" / "quickstart.ipynb"

# Runs the cells in one namespace, as a kernel does. Records displayed objects; without IPython, a fake replaces it.
RUNNER = '''
import json, sys, types
cells = json.load(open(sys.argv[1]))["cells"]
shown = []
try:
    import IPython.display as display
except ImportError:
    display = types.ModuleType("IPython.display")
    sys.modules |= {"IPython": types.ModuleType("IPython"), "IPython.display": display}
display.Video = lambda path, embed: open(path, "rb").read()
display.display = shown.append
if len(sys.argv) > 2:  # an uploaded file, as Colab gives it
    colab = types.ModuleType("google.colab")
    def upload():
        open("my clip.mp4", "wb").write(open(sys.argv[2], "rb").read())
        return {"my clip.mp4": b""}
    colab.files = types.SimpleNamespace(upload=upload)
namespace = {"__name__": "__main__"}
for cell in cells:
    if cell["cell_type"] == "code":
        code = "".join(cell["source"])
        if len(sys.argv) > 2:
            code = code.replace("UPLOAD = False", "UPLOAD = True")
            if cell["id"] == "clip":  # in this cell only: JAX would look for more of Colab
                sys.modules["google.colab"] = colab
        exec(compile(code, cell["id"], "exec"), namespace)
        sys.modules.pop("google.colab", None)
assert len(shown) == 1 and shown[0][4:8] == b"ftyp", shown
print("library", namespace["uvos_jax"].__file__)
'''


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the package installed from its wheel."""
    pytest.importorskip("setuptools", minversion="77")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"  # the build writes into the source folder
    for name in ("uvos_jax", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "requirements.txt", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    done = subprocess.run([sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index",
                           "--quiet", "--wheel-dir", str(folder), str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def _cells():
    return json.loads(NOTEBOOK.read_text())["cells"]


def _run(installed, folder, *arguments):
    """Runs all cells in an empty folder and returns their output."""
    (folder / "runner.py").write_text(RUNNER)
    (folder / "empty").mkdir()
    environment = os.environ | {"PYTHONPATH": str(installed), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run([sys.executable, str(folder / "runner.py"), str(NOTEBOOK), *map(str, arguments)],
                          cwd=folder / "empty", env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"library {installed}" in done.stdout  # not the package that the tests import
    return done.stdout


def test_wheel_contains_the_recipes(installed, tmp_path):
    code = ("import uvos_jax.configs.default; from uvos_jax.training.config import load_config;"
            " print(load_config('default:fold0') == load_config(uvos_jax.configs.default.__file__ + ':fold0'))")
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
                          env=os.environ | {"PYTHONPATH": str(installed), "JAX_PLATFORMS": "cpu"})
    assert done.stdout == "True\n", done.stderr


def test_notebook_has_no_outputs_and_unique_cell_ids():
    notebook = json.loads(NOTEBOOK.read_text())
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    for cell in notebook["cells"]:
        assert cell["cell_type"] in ("code", "markdown") and cell["metadata"] == {}
        if cell["cell_type"] == "code":
            assert cell["outputs"] == [] and cell["execution_count"] is None
    names = [cell["id"] for cell in notebook["cells"]]
    assert len(set(names)) == len(names)


def test_notebook_validates_against_nbformat():
    pytest.importorskip("nbformat").validate(json.loads(NOTEBOOK.read_text()))


def test_code_cells_compile_as_python():
    for cell in _cells():
        if cell["cell_type"] == "code":
            compile("".join(cell["source"]), cell["id"], "exec")


def test_wheel_contains_weights_and_their_license(installed):
    for name in ("default.safetensors", "synthetic.safetensors", "LICENSE"):
        packed, here = installed / "uvos_jax/assets" / name, ROOT / "uvos_jax/assets" / name
        assert packed.read_bytes() == here.read_bytes()
    (info,) = installed.glob("*.dist-info")
    assert {path.name for path in (info / "licenses").rglob("*") if path.is_file()} == {"LICENSE"}
    assert len(list((info / "licenses").rglob("LICENSE"))) == 2


@pytest.mark.slow
def test_notebook_runs_in_an_empty_folder(installed, tmp_path):
    out = _run(installed, tmp_path)
    assert "40 masks" in out
    scores = {line[:18].strip(): float(line.split(" J ")[1].split()[0]) for line in out.splitlines() if " J 0." in line}
    assert set(scores) == {"packaged network", "first mask copied", "everything"}
    assert scores["packaged network"] > scores["everything"]


@pytest.mark.slow
def test_notebook_segments_an_uploaded_clip(installed, tmp_path):
    out = _run(installed, tmp_path, ROOT / "docs/clip.mp4")
    assert "my clip: " in out and "No ground truth for this video" in out


def test_notebook_uses_the_clip_of_the_demo():
    from uvos_jax.cli import demo

    code = "".join("".join(cell["source"]) for cell in _cells() if cell["id"] == "clip")
    assert f"seed={demo.SEED:_}, length={demo.LENGTH}, size={demo.SIZE}, objects=(1, 1)" in code
