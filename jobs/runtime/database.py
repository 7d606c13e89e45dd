"""The files and the URIs of SQLite databases."""

from pathlib import Path

from sqlalchemy import make_url


def database_uri(path: Path) -> str:
    """The URI of a database file.

    SQLAlchemy decodes %XX and reads options after a question mark, so both are escaped. MLflow makes the folder of a
    `sqlite:` URI without decoding it; with the driver's full name it does not.
    """
    plain = str(path.resolve())
    escaped = plain.replace("%", "%25").replace("?", "%3F")
    return f"sqlite:///{plain}" if escaped == plain else f"sqlite+pysqlite:///{escaped}"


def database_file(uri: str) -> Path | None:
    """The file of an SQLite URI, None for all others."""
    if not uri.startswith("sqlite"):
        return None
    database = make_url(uri).database
    return Path(database).resolve() if database else None
