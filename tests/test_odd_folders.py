"""Folders with characters that mean something in addresses, in Hydra's overrides or in a shell, or that are none."""

import os
import shlex
import sqlite3
from contextlib import closing

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from PIL import Image
from sqlalchemy import create_engine, text

from tests.helpers import forked
from tlexp.errors import UsageError
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


def not_utf8(folder):
    """Makes a data set of a class and of files whose names are Latin-1."""
    for label in ("a", os.fsdecode("caf\u00e9".encode("latin-1"))):
        (folder / label).mkdir(parents=True)
        for index in range(12):
            with (folder / label / os.fsdecode(b"\xfc%d.png" % index)).open("wb") as file:
                Image.new("RGB", (8, 8), (20 * index, 0, 0)).save(file, "PNG")
    return folder


def test_names_that_are_no_utf8_are_shown_by_their_bytes(tmp_path, run_job):
    folder = not_utf8(tmp_path / "photos")
    small = ("data=images", f"data.target.root={folder}", "init=random", "batch_size=4", "epochs=1")
    assert run_job(*small)["data"]["target"]["classes"] == ["a", r"caf\xe9"]
    (folder / os.fsdecode(b"a/\xfebad.png")).write_bytes(b"torn")
    with pytest.raises(UsageError, match=r"photos/a/\\xfebad.png: not a readable image"):
        run_job(*small)
    (skipped,) = run_job(*small, "data.target.on_bad=skip")["data"]["target"]["skipped"]
    assert skipped == [rf"{folder}/a/\xfebad.png", "not a readable image (unknown format)"]


def test_arguments_and_folders_of_the_command_are_utf8(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    done = forked("data=images", f"data.target.root={name}", cwd=tmp_path)
    remedy = "holds bytes that are no UTF-8, which results cannot name; rename the file or folder\n"
    assert (done.returncode, done.stderr) == (2, rf"tlexp: data.target.root=caf\xe9: {remedy}")
    (tmp_path / name).mkdir()
    done = forked(cwd=tmp_path / name)
    assert (done.returncode, done.stderr) == (2, rf"tlexp: {tmp_path}/caf\xe9: {remedy}")
