"""What the documents say is so: commands exist, generated parts are current, nothing is missing.

Documents are read as a user reads them; nothing is started.
"""

from __future__ import annotations

import importlib.util
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import click
import pytest

import podwire
from podwire.cli import cli
from podwire.kernel.hooks import HOOKS

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "podwire"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
ROOMS = sorted(path.parent.name for path in SOURCE.glob("*/__init__.py"))
DOCUMENTS = [
    ROOT / "README.md",
    ROOT / "ARCHITECTURE.md",
    *sorted((ROOT / "docs").rglob("*.md")),
    *sorted(SOURCE.glob("*/README.md")),
]
ADRS = sorted((ROOT / "docs" / "adr").glob("*.md"))
ADR_HEADINGS = ["## Context", "## Decision", "## What lost and why", "## Evidence"]
_COMMAND = re.compile(r"^\$ (?:sudo )?(?:\./)?(podwire\b.*)$", re.MULTILINE)
_INLINE = re.compile(r"`(?:\./)?(podwire [a-z][^`]*)`")
_LINK = re.compile(r"\]\((?!https?:)([^)#\s]*)(?:#([^)\s]*))?\)")
# Programs end what click reads: `podwire plan ... -o yaml > plan.yaml`, `... | head`.
_SHELL = re.compile(r"\s(?:[|>&]|#\s)")


def _shown_commands() -> Iterator[tuple[str, str]]:
    for document in DOCUMENTS:
        text = document.read_text()
        for command in _COMMAND.findall(text):
            yield document.relative_to(ROOT).as_posix(), _SHELL.split(command)[0].strip()


COMMANDS = sorted(set(_shown_commands()))


def _parse(words: list[str]) -> None:
    """Let click read a command line without running it; raises what the user would be told."""
    command: click.Command = cli
    context = click.Context(cli, info_name="podwire")
    while isinstance(command, click.Group):
        if command.invoke_without_command and words[:1] != [*command.commands][:1]:
            break
        name = words.pop(0)
        found = command.get_command(context, name)
        if found is None:
            raise click.UsageError(f"no such command {name}")
        command = found
        if isinstance(command, click.Group):
            context = click.Context(command, parent=context, info_name=name)
    command.make_context(command.name, words, parent=context)


@pytest.mark.parametrize(("document", "command"), COMMANDS)
def test_a_command_shown_is_one_the_command_line_takes(
    document: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    # Arguments that must exist are checked by click when they are parsed.
    for name in ("web.tar", "plan.yaml", "app.yaml"):
        (tmp_path / name).touch()
    try:
        _parse(shlex.split(command)[1:])
    except click.UsageError as error:
        pytest.fail(f"{document}: {command}: {error.format_message()}")


def test_every_command_is_shown_in_the_readme_or_its_room() -> None:
    shown = "".join(
        (ROOT / name).read_text() for name in ("README.md", "src/podwire/cli/README.md")
    )
    missing = [name for name in cli.list_commands(click.Context(cli)) if f"`{name}" not in shown]
    assert missing == []


def test_commands_named_in_passing_exist() -> None:
    known = set(cli.list_commands(click.Context(cli)))
    for document in DOCUMENTS:
        for command in _INLINE.findall(document.read_text()):
            assert command.split()[1] in known, f"{document.name}: {command}"


def _render_hooks() -> ModuleType:
    spec = importlib.util.spec_from_file_location("render_hooks", ROOT / "tools/render_hooks.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_of_hooks_is_current() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text()
    assert _render_hooks().replace_table(text) == text, (
        "run: .venv/bin/python tools/render_hooks.py --write"
    )
    for hook in HOOKS:
        assert f"`{hook.table}`" in text


@pytest.mark.parametrize("adr", ADRS, ids=lambda adr: adr.stem)
def test_an_adr_has_its_number_and_headings(adr: Path) -> None:
    lines = adr.read_text().splitlines()
    assert lines[0].startswith(f"# {adr.name[:4]}. ")
    assert [line for line in lines if line.startswith("## ")] == ADR_HEADINGS
    for heading, after in zip(ADR_HEADINGS, [*ADR_HEADINGS[1:], None], strict=True):
        end = lines.index(after) if after else len(lines)
        assert any(line.strip() for line in lines[lines.index(heading) + 1 : end]), heading


def test_adrs_are_numbered_without_a_gap() -> None:
    assert [adr.name[:4] for adr in ADRS] == [f"{n:04}" for n in range(1, len(ADRS) + 1)]


def test_every_dependency_has_its_line() -> None:
    project = PROJECT["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    text = (ROOT / "docs/adr/0006-dependencies.md").read_text()
    missing = [
        name
        for name in (re.split(r"[<>=\[]", requirement)[0] for requirement in wanted)
        if f"**{name}**" not in text
    ]
    assert missing == []


def test_the_changelog_mentions_the_version() -> None:
    assert podwire.__version__ == PROJECT["project"]["version"]
    assert podwire.__version__ in (ROOT / "CHANGELOG.md").read_text()


def test_every_room_has_a_readme_and_a_place_in_the_architecture() -> None:
    architecture = (ROOT / "ARCHITECTURE.md").read_text()
    readme = (ROOT / "README.md").read_text()
    for room in ROOMS:
        assert (SOURCE / room / "README.md").exists(), f"{room} has no README.md"
        assert f"| `{room}/` |" in architecture, f"{room} is not among the rooms"
        assert f"src/podwire/{room}/README.md" in readme, f"README.md does not lead to {room}"


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(document: Path) -> None:
    for target, anchor in _LINK.findall(document.read_text()):
        path = document.parent / target if target else document
        assert path.exists(), f"{document.name}: {target}"
        if anchor:
            assert anchor in _anchors(path), f"{document.name}: {target}#{anchor}"


def _anchors(path: Path) -> set[str]:
    """GitHub's: lower case, punctuation gone, spaces as hyphens."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_the_public_surface() -> None:
    assert podwire.__all__ == ["Lab", "PodwireError", "__version__"]
    for name in podwire.__all__:
        assert getattr(podwire, name) is not None
    with pytest.raises(AttributeError):
        podwire.launch  # noqa: B018
