"""The documentation as a site: built without a warning, from the code, and complete in one folder."""

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from filelock import FileLock
from selenium.webdriver.common.by import By

from scripts.screenshots import browser
from tests.helpers import ROOT
from tlexp.config.load import CONF

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def site(shared) -> Path:
    """The folder of the site, built once for all test processes; strict, so that a warning fails."""
    folder = shared / "site"
    with FileLock(f"{folder}.lock"):
        if not (folder / "built").exists():
            line = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
            done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr
            (folder / "built").touch()
    return folder


def test_nothing_is_loaded_from_elsewhere_and_nothing_says_where_it_was_built(site):
    assert not [
        page for page in (ROOT / "docs").rglob("*.md") if re.search(r"^[A-Z]+$", page.read_text(), re.MULTILINE)
    ]
    pages = list(site.rglob("*.html"))
    assert len(pages) > 20
    for page in pages:
        html = page.read_text()
        assert not re.search(r'<(?:script|img|iframe)[^>]*src="https?:', html), page
        assert not re.search(r'<link[^>]*rel="stylesheet"[^>]*href="https?:', html), page
        assert str(ROOT) not in html, page
        assert "arithmatex" not in html, page


def test_every_option_of_the_configuration_is_explained(site):
    html = (site / "reference/options.html").read_text()
    config = yaml.safe_load((CONF / "config.yaml").read_text())
    for key, value in config.items():
        if key in ("defaults", "hydra"):
            continue
        names = [f"{key}.{name}" for name in value] if isinstance(value, dict) else [key]
        for name in names:
            assert f"<code>{name}</code>" in html, name
    assert "<code>data.shots</code>" in html


def test_help_and_option_files_are_those_of_the_code(site):
    commands = (site / "reference/commands.html").read_text()
    assert "tlexp strategy=finetune alpha=0.5" in commands
    assert "tlexp-check-data data=images data.target.root=FOLDER" in commands
    assert "--baseline BASELINE" in commands
    assert "conf/data/folder.yaml" not in (site / "reference/groups.html").read_text(), "an old name"
    strategies = (site / "reference/strategies.html").read_text()
    assert (CONF / "strategy/finetune.yaml").read_text().split("\n")[1] in strategies.replace("&#39;", "'")
    assert "<math" in strategies


def test_a_page_that_asks_for_what_is_not_there_is_an_error():
    from mkdocs.exceptions import PluginError

    from scripts.docs import on_page_markdown

    class File:
        src_uri = "page.md"

    class Page:
        file = File

    with pytest.raises(PluginError, match=r"page\.md: <!-- confg strategy/finetune -->: cannot be made"):
        on_page_markdown("<!-- confg strategy/finetune -->", Page)
    for wrong in ("<!-- conf strategy/nope -->", "<!-- conf -->", " <!-- help x -->"):
        with pytest.raises(PluginError, match="cannot be made"):
            on_page_markdown(wrong, Page)
    table = "<!-- comparison docs/results/sweep -->\n<!-- end -->"
    assert on_page_markdown(table, Page) == table


@pytest.mark.skipif(
    shutil.which("chromium") is None or shutil.which("chromedriver") is None,
    reason="no browser: apt-get install chromium chromium-driver",
)
def test_the_search_works_in_a_folder(site):
    with browser() as driver:
        for page in ("index.html", "reference/terms.html", "notebook.html"):
            driver.get(f"file://{site}/{page}")
            field = driver.find_element(By.CSS_SELECTOR, "input.md-search__input")
            driver.execute_script("arguments[0].focus()", field)
            field.send_keys("label draws")
            deadline = time.monotonic() + 60
            while not (
                found := [item.text for item in driver.find_elements(By.CSS_SELECTOR, ".md-search-result__item")]
            ):
                assert time.monotonic() < deadline
                time.sleep(0.1)
            assert found[0].startswith("Pairs, draws and intervals")
            assert not driver.get_log("browser")
