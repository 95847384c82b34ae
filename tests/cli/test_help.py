"""``--help`` and the options shared by all commands."""

import subprocess
import sys

import pytest

import uvos_jax
from tests.helpers.command_line import uvos

COMMANDS = ("segment", "flow", "demo", "convert-weights", "parity", "benchmark", "models", "convert-data", "train",
            "evaluate", "compare")


@pytest.mark.parametrize("columns", [80, 120])
def test_help_is_not_truncated(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERMINAL_WIDTH", str(columns))
    code, out, _ = uvos("--help")
    assert code == 0 and "..." not in out.replace("ARGS]...", "") and "…" not in out
    assert all(command in out for command in COMMANDS)
    for command in COMMANDS:
        code, out, err = uvos(command, "-h")
        assert code == 0 and err == "" and "…" not in out and max(map(len, out.splitlines())) <= columns
        assert f"uvos {command}" in out.partition("Example: ")[2], command


def test_segment_help_has_panels_choices_and_defaults(monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    out = uvos("segment", "--help")[1]
    panels = ("Model", "Test-time augmentation", "Input", "Prompts", "Output", "Run")
    places = [out.index(f"─ {panel} ─") for panel in panels]
    assert places == sorted(places)
    for words in ("stop|skip", "float32|bfloat16", "png|mov|webm", "[default: 0.5]", "[default: stop]"):
        assert words in out, words


@pytest.mark.parametrize("command", [name for name in COMMANDS if name != "models"])
def test_commands_share_quiet_and_log_file(command):
    out = uvos(command, "--help")[1]
    assert "--quiet" in out and "--log-file" in out


@pytest.mark.parametrize(("command", "argument"), [("demo", "VIDEO"), ("segment", "INPUT"), ("compare", "RUN")])
def test_usage_shows_repeatable_arguments_once(command, argument):
    line = next(line for line in uvos(command, "--help")[1].splitlines() if "Usage:" in line)
    assert argument in line and line.count("...") <= 1 and "[[" not in line  # Typer 0.19 adds no dots


def test_version():
    assert uvos("--version") == (0, f"uvos {uvos_jax.__version__}\n", "")


def test_public_names_are_listed_and_loaded_lazily():
    code = ("import sys, uvos_jax; assert 'jax' not in sys.modules; names = set(dir(uvos_jax));"
            "assert {*uvos_jax.__all__, 'models', 'video', 'weights'} <= names;"
            "[getattr(uvos_jax, name) for name in uvos_jax.__all__]; print(uvos_jax.segment_to_folder.__module__)")
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "uvos_jax.inference.jobs.segment"
