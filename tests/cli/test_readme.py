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
from tlexp.compare.tables import markdown

TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, flags=re.DOTALL)
COMMANDS = [line for kind, block in BLOCKS if kind == "bash" for line in block.splitlines() if "run.py" in line]
DEMOS = re.findall(r"<!-- (\w+\.py) (\S+) -->\n(.*?)\n\n", TEXT, flags=re.DOTALL)
TABLES = re.findall(r"<!-- table (\S+) -->\n(.*?)\n\n", TEXT, flags=re.DOTALL)


@pytest.mark.slow
def test_the_data_report_runs(tmp_path):
    (line,) = [line for kind, block in BLOCKS if kind == "bash" for line in block.splitlines() if "check_data" in line]
    tree(tmp_path / "PHOTOS", cat=20, dog=20)
    script, *arguments = shlex.split(line.removeprefix("python "))
    done = subprocess.run(
        [sys.executable, str(ROOT / script), *arguments], cwd=tmp_path, capture_output=True, text=True
    )
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
    """As written, but for fewer epochs and seeds, small files for the names in capitals, and no published weights."""
    for name in ("PHOTOS", "PAINTINGS"):
        tree(tmp_path / name, train={"cat": 40, "dog": 40}, test={"cat": 5, "dog": 5})
    for name, file in (("REVIEWS", "reports"), ("TWEETS", "letters")):
        shutil.copy(FILES / f"{file}.csv", tmp_path / f"{name}.csv")
    paths = sorted((tmp_path / "PHOTOS/train").rglob("*.png"))
    rows = [f"{path},{path.parent.name},patient {place % 20}" for place, path in enumerate(paths)]
    (tmp_path / "CELLS.csv").write_text("path,label,patient\n" + "\n".join(rows) + "\n")
    shutil.copy(database, tmp_path)
    line = line.replace("init=pretrained", "init=random").replace("range(5)", "0")
    arguments = shlex.split(line.removeprefix("python run.py "))
    arguments += ["init=random"] * line.startswith("python run.py experiment=")
    if "backbone=minilm" in line:
        arguments += [f"backbone.name={FILES / 'tiny_bert'}", "backbone.max_length=32"]
    run = command if "trainer=ddp" in line else forked
    done = run(*arguments, *QUICK, "epochs=1", f"store={store}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    jobs = 12 if arguments[0] == "-m" else 1
    assert done.stdout.count("target test accuracy") - done.stdout.count("training the backbone") == jobs


@pytest.mark.slow
def test_the_examples_of_a_new_strategy_and_a_new_term_work(tmp_path, store):
    code, of_term = (block for kind, block in BLOCKS if kind == "python")
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


def test_a_shell_takes_every_command_as_it_stands():
    script = "\n".join(line for kind, block in BLOCKS if kind == "bash" for line in block.splitlines())
    subprocess.run(["bash", "-n"], input=script, text=True, check=True)


def test_there_are_tables():
    assert len(TABLES) == TEXT.count("<!-- table") >= 4
    assert len(DEMOS) == TEXT.count(".py docs/results") == 3


def test_the_comparison_shown_is_that_of_its_files():
    ((folder, shown),) = re.findall(r"<!-- comparison (\S+) -->\n(.*?)\n<!-- end -->", TEXT, flags=re.DOTALL)
    study = Study(*read_files(ROOT / folder))
    assert markdown(study, compare(study)) == shown


@pytest.mark.parametrize(("file", "shown"), TABLES)
def test_a_table_is_what_its_file_says(file, shown):
    assert alpha_curve("table", str(ROOT / file), cwd=ROOT) == shown.strip()


@pytest.mark.parametrize(("script", "file", "shown"), DEMOS)
def test_a_demonstrations_table_is_what_its_file_says(script, file, shown):
    options = ["table", file] if script == "digits.py" else ["--table", file]
    line = [sys.executable, str(ROOT / "scripts/demos" / script), *options]
    assert subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip() == shown.strip()


@pytest.mark.slow
def test_a_table_is_made_from_a_sweep(tmp_path, store):
    """`collect`, `table` and `readme` in turn, on a sweep of four jobs."""
    sweep = ("-m", "alpha=0,0.5", "seed=0,1", "hydra.sweep.dir=sweep", "tracking=none", "init=random", "epochs=1")
    assert command(*sweep, *QUICK, cwd=tmp_path).returncode == 0
    (tmp_path / "curve.csv").write_text(alpha_curve("collect", "sweep", cwd=tmp_path) + "\n")
    made = alpha_curve("table", "curve.csv", cwd=tmp_path).splitlines()
    accuracies: dict[str, list[float]] = {"0": [], "0.5": []}
    for job in (tmp_path / "sweep").iterdir():
        (alpha,) = re.findall(r"-a([\d.]+)-s\d-", job.name)
        accuracies[alpha].append(json.loads((job / "metrics.json").read_text())["test/target/accuracy"])
    mean = 50 * sum(accuracies["0.5"])
    difference = mean - 50 * sum(accuracies["0"])
    assert made[3].startswith(f"| 0.5 | {mean:.1f} [")
    assert f"| {difference:+.1f} [" in made[3]
    (tmp_path / "page.md").write_text("before\n\n<!-- table curve.csv -->\n| old |\n\nafter\n")
    alpha_curve("readme", "page.md", cwd=tmp_path)
    lines = ["before", "", "<!-- table curve.csv -->", *made, "", "after"]
    assert (tmp_path / "page.md").read_text().splitlines() == lines


def alpha_curve(*arguments, cwd):
    line = [sys.executable, str(ROOT / "scripts/alpha_curve.py"), *arguments]
    return subprocess.run(line, cwd=cwd, capture_output=True, text=True, check=True).stdout.strip()


def test_every_file_the_readme_names_is_there():
    for name in re.findall(r"`((?:tlexp|scripts|conf|docs)/[\w./]+)`", TEXT):
        assert (Path(ROOT) / name).exists(), name
