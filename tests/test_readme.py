"""The README says what is so: its commands are those that CI runs and those that the command line takes."""

import re
import shlex
from pathlib import Path

import pytest

from chinchilla_lm import cli

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def code_lines(text: str) -> list[str]:
    """The command lines of the README's shell blocks, continuations joined."""
    blocks = re.findall(r"```(?:sh|bash|console)\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.replace("\\\n", " ").splitlines() if line.strip()]


def setup_commands() -> list[str]:
    return [line for line in code_lines(README) if "venv" in line]


def verb_commands() -> list[str]:
    """Every `chinchilla …` of the README: in shell blocks, and in running text and tables."""
    steps = [step.strip() for line in code_lines(README) for step in line.split("&&")]
    inline = re.findall(r"`(chinchilla [^`]+)`", README)
    return sorted({command for command in steps + inline if command.startswith("chinchilla ")})


def test_there_are_exactly_two_setup_commands():
    assert len(setup_commands()) == 2
    assert setup_commands()[0].endswith("chinchilla demo --fast")


def test_ci_runs_the_second_setup_command():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    commands = [line for line in script.splitlines() if line and not line.startswith("#")]
    assert commands[0] == "set -euo pipefail"
    assert commands[-1] == setup_commands()[1]
    assert commands[-1].endswith("&& pytest"), "pytest's closing line must be the last"
    assert (ROOT / ".ci" / "run").stat().st_mode & 0o111


def test_every_check_comes_before_the_tests():
    steps = [step.strip() for step in setup_commands()[1].split("&&")]
    assert steps[-5:] == ["ruff check", "ruff format --check", "mypy", "lint-imports", "pytest"]


def test_the_table_lists_every_verb():
    rows = re.findall(r"^\| `chinchilla (\w+)", README, re.MULTILINE)
    assert rows == list(cli.VERBS)


@pytest.mark.parametrize("command", verb_commands())
def test_verbs_and_flags_of_the_readme_exist(command: str):
    words = shlex.split(command)[1:]
    verb, flags = words[0], [word.split("=")[0] for word in words if word.startswith("-")]
    assert verb in cli.VERBS
    parser, module = cli._build_parser(verb)
    assert module is not None
    if flags:
        assert parser.parse_args(words).verb == verb  # argparse ends the test for a flag it does not know


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#:]+)\)", README))
def test_links_lead_to_files(target: str):
    assert (ROOT / target).exists()


def test_the_exit_statuses_are_those_of_the_command_line():
    rows = {int(status) for status in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)}
    assert rows == {cli.DONE, cli.FAILED, cli.BAD_INPUT, 3, cli.STOPPED}


def test_every_family_is_listed():
    from chinchilla_lm.models.families import FAMILIES

    rows = re.findall(r"^\| (?:autoencoding|autoregressive) \| (.*) \|$", README, re.MULTILINE)
    assert sorted(name for row in rows for name in row.split(", ")) == sorted(FAMILIES)
