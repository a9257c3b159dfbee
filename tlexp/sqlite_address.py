"""The address of a SQLite file, as MLflow and Optuna take it: SQLAlchemy's URL, in which `%` and `?` are special."""

from pathlib import Path

from tlexp.errors import UsageError

PREFIX = "sqlite:///"


def sqlite_address(file: Path) -> str:
    """Returns the address of a file, whatever characters its folders have.

    Raises:
        UsageError: for a path that the installed version of SQLAlchemy cannot express.
    """
    if not {"%", "?"} & set(str(file)):
        return f"{PREFIX}{file}"
    from sqlalchemy.engine import URL

    address = URL.create("sqlite", database=str(file)).render_as_string(hide_password=False)
    if sqlite_file(address) != file:
        raise UsageError(f"{file.parent}: SQLAlchemy before 2.1 cannot open a database there; rename the folder")
    return address


def sqlite_file(address: str) -> Path | None:
    """Returns the file of an address; None for another kind of database."""
    if not address.startswith(PREFIX):
        return None
    if not {"%", "?"} & set(address):
        return Path(address.removeprefix(PREFIX))
    from sqlalchemy.engine import make_url

    return Path(make_url(address).database or "")


def absolute(address: str, root: Path) -> str:
    """Returns an address whose file does not depend on the working directory; other addresses as they are."""
    if (file := sqlite_file(address)) is None:
        return address
    query = address.partition("?")[2]
    return sqlite_address(root / file) + (f"?{query}" if query else "")
