"""SQLite databases: their files and their URIs."""

from pathlib import Path

from sqlalchemy import make_url


def database_uri(path: Path) -> str:
    """The URI of a database file.

    SQLAlchemy decodes %XX and takes a ? for the start of options. MLflow makes the folder of a `sqlite:` URI without
    decoding it, so a path that needs escapes goes under the driver's full name, which means the same.
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
