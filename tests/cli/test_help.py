"""``--help`` and the options shared by all commands."""

import re
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
        assert f"uvos {command}" in out.partition("Example")[2], command


@pytest.mark.parametrize("columns", [80, 120])
def test_help_has_no_boolean_type_and_states_defaults(monkeypatch, columns):
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("TERMINAL_WIDTH", str(columns))
    for command in ((), *((command,) for command in COMMANDS)):
        out = uvos(*command, "--help")[1]
        assert "bool" not in out.lower() and "…" not in out, command
        rows = _help_rows(out)
        for option in ("--model", "--weights", "--variant"):
            if option in rows and (*command, option) not in (("convert-weights", "--model"), ("flow", "--weights")):
                assert re.search(r"\bdefault: \S", rows[option], re.IGNORECASE), (command, option)
        if "--variant" in rows:
            assert "'official_full'" in rows["--variant"]
    assert "zero flow" in _help_rows(uvos("flow", "--help")[1])["--on-error"]
    assert "repeat the last mask" in _help_rows(uvos("segment", "--help")[1])["--on-error"]


def _help_rows(text: str) -> dict[str, str]:
    """Returns the text of each option's rows in a rendered help, on one line, by the option's long name."""
    rows, name = {}, None
    for line in text.splitlines():
        cells = line.strip("│╭╰─╮╯ ").removeprefix("*").strip()
        if line.startswith("│") and cells.startswith("--"):
            name = cells.split()[0]
            rows[name] = cells
        elif line.startswith("│") and name:
            rows[name] += f" {cells}"
        else:
            name = None
    return rows


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
