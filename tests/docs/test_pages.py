"""README and documentation are executed: commands and examples in Python; tables are compared with their files."""

import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import load_file

from tests.helpers import FILES, QUICK, ROOT, command, forked, tree
from tlexp.commands import check_data, compare, import_weights
from tlexp.commands.compare import update_tables
from tlexp.config.load import CONF

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


ALL = commands()
RUNS = [known.line for known in ALL if known.line.startswith("python run.py ") and not known.needs]
RESULTS = (ROOT / "docs/results.md").read_text()
EXTENDING = ROOT / "docs/guides/extending.md"


def test_every_command_is_executed_or_says_what_it_needs():
    """Beside those below: what `.ci/run` executes, and the environment it builds."""
    by_ci = {"make test", "make check", "make docs"}
    assert all(line in (ROOT / ".ci/run").read_text() for line in by_ci)
    other = {known.line for known in ALL if not known.needs} - set(RUNS) - by_ci
    assert {line for line in other if not line.startswith(("tlexp-", "PYTHONPATH=mine python run.py "))} == set()


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """An MLflow database without a run: to make one takes as long as a short run."""
    file = tmp_path_factory.mktemp("database") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.fixture(scope="module")
def imported(tmp_path_factory):
    """The folder in which the pages import weights."""
    folder = tmp_path_factory.mktemp("imported")
    for known in ALL:
        if known.line.startswith("tlexp-import-weights"):
            arguments = shlex.split(known.line)[1:]
            done = forked(*arguments, cwd=folder, main=import_weights.main, script="tlexp-import-weights")
            assert done.returncode == 0, done.stderr
    return folder


def make_data(folder: Path) -> None:
    """Makes the data that the pages name in capitals."""
    for name in ("PHOTOS", "PAINTINGS"):
        tree(folder / name, train={"cat": 40, "dog": 40}, test={"cat": 5, "dog": 5})
    for name, file in (("REVIEWS", "reports"), ("TWEETS", "letters")):
        shutil.copy(FILES / f"{file}.csv", folder / f"{name}.csv")
    header, *rows = (FILES / "reports.csv").read_text().splitlines()
    splits = ["test" if number % 5 == 0 else "train" for number in range(len(rows))]
    marked = [f"{row},{split}" for row, split in zip(rows, splits, strict=True)]
    (folder / "SPLIT.csv").write_text("\n".join([f"{header},split", *marked]) + "\n")
    (folder / "REVIEWS").mkdir()
    for part in ("train", "test"):
        of_part = [row for row, split in zip(rows, splits, strict=True) if split == part]
        (folder / f"REVIEWS/{part}.csv").write_text("\n".join([header, *of_part]) + "\n")
    paths = sorted((folder / "PHOTOS/train").rglob("*.png"))
    cells = [f"{path},{path.parent.name},patient {number % 20}" for number, path in enumerate(paths)]
    (folder / "CELLS.csv").write_text("path,label,patient\n" + "\n".join(cells) + "\n")


def shortened(line: str) -> list[str]:
    """Returns the arguments of a command with one seed, fewer alphas, epochs and pixels, and no published weights."""
    for long, short in ((r"range\(\d+\)", "0"), (r"0,0\.1,0\.3,1\b", "0,0.3"), (r"trials=\d+", "trials=1")):
        line = re.sub(long, short, line)
    if "backbone.name=minilm" not in line:
        line = line.replace("init=pretrained", "init=random")
    arguments = shlex.split(line.removeprefix("python run.py "))
    if "experiment=" in line and "keras" in line:
        arguments += ["init=random"]
    if re.search("resnet18|mobilenetv3|efficientnet_lite0|vit_small", line):
        arguments += ["backbone.size=64"]
    if re.search("backbone=minilm|bert_keras", line):
        arguments += ["backbone.max_length=32"]
        arguments += [f"backbone.name={FILES / 'tiny_bert'}"] * ("backbone.name=minilm" not in line)
    if "experiment=digits" in line:
        arguments += ["trainer.check_val_every_n_epoch=1"]
    return [*arguments, *QUICK, "epochs=1"]


@pytest.mark.slow
@pytest.mark.parametrize("line", sorted(RUNS))
def test_every_run_of_a_page_ends_with_a_result(line, tmp_path, store, database, imported):
    make_data(tmp_path)
    for file in imported.iterdir():
        (tmp_path / file.name).symlink_to(file)
    torch.save({"state_dict": load_file(imported / "lite0.safetensors")}, tmp_path / "WEIGHTS.pth")
    shutil.copy(database, tmp_path)
    done = forked(*shortened(line), f"store={store}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    planned = re.search(r"(\d+) unique jobs", done.stdout)
    results = done.stdout.count("target test accuracy") - done.stdout.count("training the backbone")
    assert results == (int(planned[1]) if planned else 1)


@pytest.mark.slow
def test_the_data_report_of_the_pages(tmp_path):
    lines = [known.line for known in ALL if known.line.startswith("tlexp-check-data")]
    assert lines
    make_data(tmp_path)
    for line in lines:
        done = forked(*shlex.split(line)[1:], cwd=tmp_path, main=check_data.main)
        assert done.returncode == 0, done.stderr
        assert "data_report.png" in done.stdout


@pytest.mark.slow
def test_the_comparisons_of_the_pages(finished_sweep, tmp_path):
    """With the name of another sweep."""
    lines = [known.line for known in ALL if known.line.startswith("tlexp-compare") and not known.needs]
    assert len(lines) == 2
    shutil.copytree(finished_sweep, tmp_path / "all")
    (folder,) = (finished_sweep / "outputs/sweeps").iterdir()
    for line in lines:
        arguments = shlex.split(line.replace("budgets", folder.name))[1:]
        done = forked(*arguments, cwd=tmp_path / "all", main=compare.main, script="tlexp-compare")
        assert done.returncode == 0, done.stderr
        assert "strategy-alpha-seed" in done.stdout


@pytest.mark.slow
def test_the_examples_of_a_new_strategy_a_term_and_a_data_set_work(tmp_path, store):
    code, of_term = blocks(EXTENDING, "python")
    option, of_term_option, of_data_set = blocks(EXTENDING, "yaml")
    for folder in ("strategy", "terms", "dataset"):
        (tmp_path / "mine" / folder).mkdir(parents=True)
    (tmp_path / "mine/only_first.py").write_text(code)
    (tmp_path / "mine/strategy/only_first.yaml").write_text(option)
    (tmp_path / "mine/unsure.py").write_text(of_term)
    (tmp_path / "mine/terms/unsure.yaml").write_text(of_term_option)
    (tmp_path / "mine/dataset/fashion.yaml").write_text(of_data_set)
    line, swept = [known.line for known in ALL if known.line.startswith("PYTHONPATH=mine")]
    arguments = shlex.split(line.removeprefix("PYTHONPATH=mine python run.py "))
    options = (*arguments, *QUICK, "epochs=1", f"store={store}", "tracking=none")
    done = command(*options, cwd=tmp_path, PYTHONPATH=str(tmp_path / "mine"))
    assert done.returncode == 0, done.stderr
    rows = {line.split()[1]: line for line in done.stdout.splitlines() if "│" in line}
    assert "yes" in rows["stem"]
    assert "frozen" in rows["hidden"]
    assert "0.1 * unsure" in done.stdout
    arguments = shlex.split(swept.removeprefix("PYTHONPATH=mine python run.py ").replace("range(5)", "0"))
    options = (*arguments, *QUICK, "epochs=1", f"store={store}", "tracking=none")
    done = command(*options, cwd=tmp_path, PYTHONPATH=str(tmp_path / "mine"))
    assert "3 grid points, 3 unique jobs" in done.stdout
    data = ("--config-dir", "mine", "data=named", "dataset@data.target=fashion", "init=random", "--cfg", "job")
    assert "dataset: FashionMNIST" in forked(*data, cwd=tmp_path).stdout


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", "docs/reference/python.md"])
def test_the_examples_in_python_work(page, tmp_path, store):
    """With one epoch and one seed."""
    code = "\n".join(blocks(ROOT / page, "python"))
    short = ", ".join(f'"{option}"' for option in (*QUICK, "epochs=1", "tracking=none", f"store={store}"))
    code = code.replace('"strategy=', f'{short}, "strategy=').replace("range(5)", "0")
    done = forked(cwd=tmp_path, main=lambda: exec(code, {}))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("target test accuracy") - done.stdout.count("training the backbone") == 5
    assert all(re.search(rf"^\d +{strategy}", done.stdout, flags=re.MULTILINE) for strategy in ("scratch", "finetune"))


def test_a_shell_takes_every_command_as_it_stands():
    script = "\n".join(known.line for known in ALL)
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_a_command_says_what_it_needs():
    assert Command("make demo", "needs a package index: builds .venv and runs the main job") in ALL


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= 160


@pytest.mark.parametrize("page", ["README.md", "docs/results.md"])
def test_the_tables_shown_are_those_of_their_files(page):
    text = (ROOT / page).read_text()
    assert text.count("<!-- comparison docs/results/") >= (1 if page == "README.md" else 12)
    assert update_tables(text, ROOT) == text


@pytest.mark.parametrize("page", ["docs/results.md", "docs/concepts/statistics.md"])
def test_the_table_of_a_script_is_that_of_its_file(page):
    text = (ROOT / page).read_text()
    ((script, file, shown),) = re.findall(r"<!-- (\w+\.py) (\S+) -->\n(.*?)\n\n", text, flags=re.DOTALL)
    line = [sys.executable, str(ROOT / "scripts/demos" / script), "--table", file]
    assert subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip() == shown.strip()


def test_a_page_gets_the_table_of_a_folder(finished_sweep, tmp_path):
    (folder,) = (finished_sweep / "outputs/sweeps").iterdir()
    page = "before\n\n<!-- comparison sweep test/target/nll -->\n| old |\n<!-- end -->\n\nafter\n"
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/page.md").write_text(page)
    (tmp_path / "sweep").symlink_to(folder)
    line = [sys.executable, "-m", "tlexp.commands.compare", "--update", "docs/page.md"]
    subprocess.run(line, check=True, cwd=tmp_path)
    written = (tmp_path / "docs/page.md").read_text()
    assert written.startswith("before\n\n<!-- comparison sweep test/target/nll -->\n| method |")
    assert written.endswith("<!-- end -->\n\nafter\n")
    assert "- test/target/nll: mean and 95 % t interval over seed; 18 grid points, 18 unique jobs" in written
    assert "| old |" not in written


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_file_and_link_of_a_page_is_there(page):
    """The build of the site checks links within the documentation; here those of the README too."""
    text = page.read_text()
    for name in re.findall(r"`((?:tlexp|scripts|conf|docs)/[\w./]+)`", text):
        assert (ROOT / name).exists(), name
    for target in re.findall(r"\]\(([^)#\s]+)", text):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("group", ["strategy", "terms", "dataset", "backbone"])
def test_the_pages_name_every_option(group):
    text = "\n".join(page.read_text() for page in PAGES)
    for file in (CONF / group).glob("*.yaml"):
        assert f"`{file.stem}`" in text, file
    for kind, page in (("strategy", "strategies"), ("terms", "terms")):
        shown = re.findall(r"^<!-- conf (\S+) -->$", (ROOT / f"docs/reference/{page}.md").read_text(), re.MULTILINE)
        assert sorted(shown) == sorted(f"{kind}/{file.stem}" for file in (CONF / kind).glob("*.yaml"))
