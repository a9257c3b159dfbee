"""README and documentation as they are written: their blocks of code and the commands in them."""

import re
from dataclasses import dataclass
from pathlib import Path

from tests.helpers import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@dataclass(frozen=True)
class Command:
    """A command line of a page.

    Attributes:
        line: without its comment.
        needs: what the comment says it needs, such as a network; empty for one that is executed.
    """

    line: str
    needs: str


def blocks(page: Path, kind: str) -> list[str]:
    """Returns the blocks of a language in a page."""
    return re.findall(rf"^```{kind}\b[^\n]*\n(.*?)^```$", page.read_text(), flags=re.DOTALL | re.MULTILINE)


def commands() -> list[Command]:
    """Returns all commands of all pages, each once."""
    found = {}
    for page in PAGES:
        for block in blocks(page, "(?:bash|sh|console)"):
            for line in re.sub(r" *\\\n *", " ", block).splitlines():
                text, _, comment = line.partition(" #")
                if text.strip() and not text.startswith("#"):
                    needs = comment.strip()
                    command = Command(text.strip(), needs if needs.startswith("needs ") else "")
                    assert found.setdefault(command.line, command).needs == command.needs, command
    return list(found.values())
