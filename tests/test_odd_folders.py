"""Folders with characters that mean something in addresses, in Hydra's overrides or in a shell."""

import shlex
import sqlite3
from contextlib import closing

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from sqlalchemy import create_engine, text

from tests.helpers import forked
from tlexp.overrides import argument
from tlexp.sqlite_address import absolute, sqlite_address, sqlite_file

NAMES = ("plain", "a%20b", "100%", "a?b=c", "a{z}b", "a#b", "a@b:c", "a'b \"c", "a;b&c", "ü数", "a,b", "a\\b", "$HOME")


@pytest.mark.parametrize("name", NAMES)
def test_a_database_is_where_its_address_says(tmp_path, name):
    file = tmp_path / name / "x.db"
    file.parent.mkdir()
    address = sqlite_address(file)
    assert sqlite_file(address) == sqlite_file(absolute(address, tmp_path)) == file
    with create_engine(address).connect() as connection:
        connection.execute(text("create table entries (name text)"))
    with closing(sqlite3.connect(file)) as db:
        assert db.execute("select count(*) from entries").fetchone() == (0,)


def test_relative_addresses_start_from_the_folder_of_the_command_and_others_stay(tmp_path):
    assert absolute("sqlite:///my.db", tmp_path) == f"sqlite:///{tmp_path}/my.db"
    assert absolute("sqlite:///my.db?timeout=60", tmp_path) == f"sqlite:///{tmp_path}/my.db?timeout=60"
    assert absolute("https://mlflow.example.org/?a=%20", tmp_path) == "https://mlflow.example.org/?a=%20"
    assert sqlite_file("postgresql://user@host/db") is None


@pytest.mark.parametrize("name", [*NAMES, "a=b", "[1]", "null", "1e3", "x y", "~", "a\\'b", "a\\"])
def test_a_printed_argument_can_be_copied(name):
    (word,) = shlex.split(argument("resume", f"/runs/{name}"))
    (override,) = OverridesParser.create().parse_overrides([word])
    assert (override.key_or_group, str(override.value())) == ("resume", f"/runs/{name}")


@pytest.mark.parametrize("name", ["a%20b?c", "{z} 'q'"])
def test_a_search_and_its_store_work_in_any_folder(tmp_path, name):
    folder = tmp_path / name
    folder.mkdir()
    search = ("-m", "init=random", "epochs=1", "backbone=mlp", "lr=interval(0.001,0.01)", "sweep.trials=1")
    done = forked(*search, cwd=folder)
    assert done.returncode == 0, done.stderr
    assert {"mlflow.db", "mlartifacts", "outputs"} <= {path.name for path in folder.iterdir()}
    with closing(sqlite3.connect(folder / "mlflow.db")) as db:
        assert db.execute("select count(*) from runs where status = 'FINISHED'").fetchone() == (2,)
    assert list(folder.glob("outputs/sweeps/*/study.db"))
    line = next(line for line in done.stdout.splitlines() if "mlflow ui" in line)
    printed = shlex.split(line.removeprefix("sweep: ").split(", then ")[0])
    assert sqlite_file(printed[-1]) == folder / "mlflow.db"
