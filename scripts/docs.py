"""Hooks of MkDocs: what the site shows of the code is made from the code when the site is built.

A page asks for it by a comment of its own line:

    <!-- conf strategy/finetune -->    the option's file
    <!-- option-groups -->             every group with its files
    <!-- options -->                   every key of the configuration with type, default and meaning
    <!-- help -->                      the command's own help
    <!-- script-help tlexp-compare --> the help of another command

Formulas become MathML, which browsers show without a script.
"""

import dataclasses
import inspect
import re
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from html import unescape
from importlib import import_module
from io import StringIO
from typing import Any
from unittest.mock import patch

import yaml
from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

from tlexp.config import schema
from tlexp.config.load import CONF, option_files
from tlexp.help import help_text

GROUPS = {
    "strategy": "what trains, when and how fast",
    "terms": "further losses",
    "data": "source and target",
    "dataset": "a data set of a role: `dataset@data.target=`, `dataset@data.source=`, `+dataset@data.shifted=`",
    "backbone": "the network below the head",
    "augment": "random augmentation of training images",
    "optimizer": "of torch.optim",
    "schedule": "the learning rate over the steps",
    "trainer": "Lightning's Trainer",
    "tracking": "where results go beside the run's folder",
    "experiment": "whole recipes and studies",
}
# Options that their own pages explain.
ON_PAGES = {"strategy": "strategies.md", "terms": "terms.md"}
COMMANDS = {
    "tlexp-compare": "tlexp.commands.compare",
    "tlexp-check-data": "tlexp.commands.check_data",
    "tlexp-import-weights": "tlexp.commands.import_weights",
}


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Replaces each comment that asks for something by what it asks for."""

    def replaced(match: re.Match[str]) -> str:
        name, *arguments = match[1].split()
        if name in ("comparison", "end", "--8<--") or name.endswith(".py"):  # what other tools write or read
            return match[0]
        try:
            return str(BLOCKS[name](*arguments))
        except (KeyError, TypeError, OSError) as error:
            raise PluginError(f"{page.file.src_uri}: {match[0].strip()}: cannot be made; see {__name__}") from error

    return re.sub(r"^[ \t]*<!--\s*(\S.*?)\s*-->[ \t]*$", replaced, markdown, flags=re.MULTILINE)


def on_page_content(html: str, **_: Any) -> str:
    """Turns formulas into MathML."""

    def formula(match: re.Match[str]) -> str:
        opening, tex = match[1], unescape(match[2])
        return convert(tex, display="block" if opening == "\\[" else "inline")

    return re.sub(
        r'<(?:span|div) class="arithmatex">(\\[\[(])(.*?)\\[\])]</(?:span|div)>', formula, html, flags=re.DOTALL
    )


def option(path: str) -> str:
    """Returns an option's file as a block."""
    return f'```yaml title="conf/{path}.yaml"\n{(CONF / f"{path}.yaml").read_text().strip()}\n```'


def option_groups() -> str:
    """Returns every group, each with the files of its options."""
    if unknown := {folder.name for folder in CONF.iterdir() if folder.is_dir()} ^ set(GROUPS):
        raise PluginError(f"scripts/docs.py: GROUPS and conf/ differ in {', '.join(sorted(unknown))}")
    return "\n\n".join(part for group in GROUPS for part in _group(group))


def _group(group: str) -> Iterator[str]:
    yield f"## {group}\n\n`{group}=`: {GROUPS[group]}."
    if group in ON_PAGES:
        names = [f"[`{file.stem}`]({ON_PAGES[group]}#{file.stem})" for file in sorted((CONF / group).glob("*.yaml"))]
        yield f"{', '.join(names)}."
        return
    for file in option_files(CONF / group):
        yield f'??? note "{file.stem}"\n\n' + "\n".join(
            f"    {line}" for line in option(f"{group}/{file.stem}").split("\n")
        )


def options() -> str:
    """Returns every key that `conf/config.yaml` and the classes of the schema define, by section."""
    defaults = yaml.safe_load((CONF / "config.yaml").read_text())
    defaults["tracking"] = yaml.safe_load((CONF / "tracking/mlflow.yaml").read_text())
    said = dict(_comments((CONF / "config.yaml").read_text()))
    sections = {"": schema.Config}
    for item in dataclasses.fields(schema.Config):
        if dataclasses.is_dataclass(item.type):
            sections[item.name] = item.type  # type: ignore[assignment]
    return "\n\n".join(_section(name, kind, defaults, said) for name, kind in sections.items() if name != "recipe")


def _section(section: str, kind: type, defaults: dict[str, Any], said: dict[str, str]) -> str:
    comments = dict(_comments(inspect.getsource(kind)))
    rows = ["| option | type | default | meaning |", "|---|---|---|---|"]
    for item in dataclasses.fields(kind):
        nested = dataclasses.is_dataclass(item.type) or (item.type == dict[str, Any] and not section)
        if nested or item.name == "terms":
            continue
        key = f"{section}.{item.name}" if section else item.name
        meaning = said.get(key) or comments.get(item.name)
        if not meaning:
            raise PluginError(f"{key} has no comment in conf/config.yaml or tlexp/config/schema.py")
        given = (defaults.get(section, {}) if section else defaults).get(item.name, item.default)
        if isinstance(given, str) and given.startswith("${recipe."):
            given = "by the strategy"
        missing = given is dataclasses.MISSING or given == "???"
        written = yaml.safe_dump(None if missing else given, default_flow_style=True, width=999)
        shown = "by the group" if missing else written.split("\n")[0]
        plain = isinstance(item.type, type) and not hasattr(item.type, "__args__")
        named = item.type.__name__ if plain else str(item.type).replace("typing.", "")
        cells = (f"`{key}`", named.replace("|", "or"), f"`{shown}`", meaning.replace("|", "or"))
        rows.append(f"| {' | '.join(cells)} |")
    return f"## {section or 'Top level'}\n\n" + "\n".join(rows)


def _comments(text: str) -> Iterator[tuple[str, str]]:
    """Yields each key of a file, with its section before it, and the comment on its line."""
    section = ""
    for line in text.splitlines():
        found = re.match(r"( *)(\w+): ?([^#]*?)(?:\s+# (.*))?$", line)
        if not found:
            continue
        indent, key, value, comment = found.groups()
        if not indent:
            section = "" if value else f"{key}."
        if comment:
            yield (f"{section}{key}" if indent and section else key), comment


def help_page() -> str:
    """Returns what `tlexp --help` prints."""
    return f"```text\n{help_text('tlexp', [])}\n```"


def script_help(command: str) -> str:
    """Returns what another command prints for `--help`."""
    main = import_module(COMMANDS[command]).main
    with patch.object(sys, "argv", [command, "--help"]), redirect_stdout(StringIO()) as printed, suppress(SystemExit):
        main()
    return f"```text\n{printed.getvalue().strip()}\n```"


BLOCKS: dict[str, Any] = {
    "conf": option,
    "option-groups": option_groups,
    "options": options,
    "help": help_page,
    "script-help": script_help,
}
