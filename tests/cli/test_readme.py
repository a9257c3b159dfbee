"""The README is executed: its commands, its example of a new strategy, and its tables against their files."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from mlflow import MlflowClient

from tests.helpers import FILES, QUICK, ROOT, command, forked, tree
from tlexp.commands import check_data
from tlexp.commands.compare import update_tables

TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, flags=re.DOTALL)
COMMANDS = [line for kind, block in BLOCKS if kind == "bash" for line in block.splitlines() if "run.py" in line]
MECHANISM = re.findall(r"<!-- (\w+\.py) (\S+) -->\n(.*?)\n\n", TEXT, flags=re.DOTALL)


@pytest.mark.slow
def test_the_data_report_runs(tmp_path):
    (line,) = [line for kind, block in BLOCKS if kind == "bash" for line in block.splitlines() if "check-data" in line]
    tree(tmp_path / "PHOTOS", cat=20, dog=20)
    arguments = shlex.split(line.removeprefix("tlexp-check-data "))
    done = forked(*arguments, cwd=tmp_path, main=check_data.main)
    assert done.returncode == 0, done.stderr
    assert "data_report.png" in done.stdout


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    """An MLflow database without a run: to make one takes as long as a short run."""
    file = tmp_path_factory.mktemp("database") / "mlflow.db"
    MlflowClient(f"sqlite:///{file}").search_experiments()
    return file


@pytest.mark.slow
@pytest.mark.parametrize("line", sorted(set(COMMANDS)))
def test_every_command_runs(line, tmp_path, store, database):
    """As written, but for fewer epochs, seeds and pixels, small files for names in capitals, no published weights."""
    for name in ("PHOTOS", "PAINTINGS"):
        tree(tmp_path / name, train={"cat": 40, "dog": 40}, test={"cat": 5, "dog": 5})
    for name, file in (("REVIEWS", "reports"), ("TWEETS", "letters")):
        shutil.copy(FILES / f"{file}.csv", tmp_path / f"{name}.csv")
    paths = sorted((tmp_path / "PHOTOS/train").rglob("*.png"))
    rows = [f"{path},{path.parent.name},patient {number % 20}" for number, path in enumerate(paths)]
    (tmp_path / "CELLS.csv").write_text("path,label,patient\n" + "\n".join(rows) + "\n")
    shutil.copy(database, tmp_path)
    line = line.replace("init=pretrained", "init=random").replace("range(5)", "0").replace("0,0.1,0.3,1", "0,0.3")
    arguments = shlex.split(line.removeprefix("python run.py "))
    arguments += ["init=random"] * line.startswith("python run.py experiment=")
    if any(name in line for name in ("resnet18", "mobilenetv3")):
        arguments += ["backbone.size=64"]
    if "backbone=minilm" in line:
        arguments += [f"backbone.name={FILES / 'tiny_bert'}", "backbone.max_length=32"]
    done = forked(*arguments, *QUICK, "epochs=1", f"store={store}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    jobs = 6 if arguments[0] == "-m" else 1
    assert done.stdout.count("target test accuracy") - done.stdout.count("training the backbone") == jobs


@pytest.mark.slow
def test_the_examples_of_a_new_strategy_and_a_new_term_work(tmp_path, store):
    _, code, of_term = (block for kind, block in BLOCKS if kind == "python")
    option, of_term_option = (block for kind, block in BLOCKS if kind == "yaml")
    for folder in ("strategy", "terms"):
        (tmp_path / "mine" / folder).mkdir(parents=True)
    (tmp_path / "mine/only_first.py").write_text(code)
    (tmp_path / "mine/strategy/only_first.yaml").write_text(option)
    (tmp_path / "mine/unsure.py").write_text(of_term)
    (tmp_path / "mine/terms/unsure.yaml").write_text(of_term_option)
    options = ("--config-dir", "mine", "strategy=only_first", "terms=[unsure,bss]", "terms.unsure.weight=0.2")
    options += (*QUICK, "epochs=1", f"store={store}", "tracking=none")
    done = command(*options, cwd=tmp_path, PYTHONPATH=str(tmp_path / "mine"))
    assert done.returncode == 0, done.stderr
    rows = {line.split()[1]: line for line in done.stdout.splitlines() if "│" in line}
    assert "yes" in rows["stem"]
    assert "frozen" in rows["hidden"]
    assert "0.2 * unsure + 0.001 * bss" in done.stdout
    (history,) = tmp_path.glob("outputs/runs/*/history.jsonl")
    assert json.loads(history.read_text())["train/terms/unsure"] > 0


@pytest.mark.slow
def test_the_example_in_python_works(tmp_path, store):
    """With one epoch and one seed."""
    code = next(block for kind, block in BLOCKS if kind == "python")
    short = ", ".join(f'"{option}"' for option in (*QUICK, "epochs=1", "tracking=none", f"store={store}"))
    code = code.replace('"strategy=', f'{short}, "strategy=').replace("range(5)", "0")
    done = forked(cwd=tmp_path, main=lambda: exec(code, {}))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("target test accuracy") - done.stdout.count("training the backbone") == 5
    assert all(re.search(rf"^\d +{strategy}", done.stdout, flags=re.MULTILINE) for strategy in ("scratch", "finetune"))


def test_a_shell_takes_every_command_as_it_stands():
    script = "\n".join(line for kind, block in BLOCKS if kind == "bash" for line in block.splitlines())
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_the_tables_shown_are_those_of_their_files():
    assert TEXT.count("<!-- comparison docs/results/") >= 12
    assert update_tables(TEXT, ROOT) == TEXT


def test_the_mechanisms_table_is_that_of_its_file():
    ((script, file, shown),) = MECHANISM
    line = [sys.executable, str(ROOT / "scripts/demos" / script), "--table", file]
    assert subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip() == shown.strip()


def test_a_page_gets_the_table_of_a_folder(finished_sweep, tmp_path):
    (folder,) = (finished_sweep / "outputs/sweeps").iterdir()
    page = "before\n\n<!-- comparison sweep test/target/nll -->\n| old |\n<!-- end -->\n\nafter\n"
    (tmp_path / "page.md").write_text(page)
    (tmp_path / "sweep").symlink_to(folder)
    line = [sys.executable, "-m", "tlexp.commands.compare", "--update", str(tmp_path / "page.md")]
    subprocess.run(line, check=True, cwd=tmp_path)
    written = (tmp_path / "page.md").read_text()
    assert written.startswith("before\n\n<!-- comparison sweep test/target/nll -->\n| method |")
    assert written.endswith("<!-- end -->\n\nafter\n")
    assert "- test/target/nll: mean and 95 % t interval over seed; 18 grid points, 18 unique jobs" in written
    assert "| old |" not in written


def test_every_file_the_readme_names_is_there():
    for name in re.findall(r"`((?:tlexp|scripts|conf|docs)/[\w./]+)`", TEXT):
        assert (Path(ROOT) / name).exists(), name
