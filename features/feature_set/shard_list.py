"""`shard_uris`: the shards that count, and `replace`: how a compaction puts a merged shard in the place of small ones.

A file system cannot replace several files by one in a single step, so a journal decides which files count:

1. the merged shard is written under a hidden name: it does not count;
2. the journal names it and the files that it replaces: now it counts, and they do not;
3. the old files are deleted, the merged shard gets its visible name, and the journal is cleared.

A process killed in between leaves a state that our readers see whole and that `recover` finishes. Other readers, which
list ``shards/*.parquet``, never see a row twice.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass

from skipreel.features.errors import FeatureSetError
from skipreel.features.feature_set.schema import SHARDS
from skipreel.pipeline import storage
from skipreel.pipeline.errors import StorageError
from skipreel.pipeline.storage.uris import explained

JOURNAL = "compaction.json"
HIDDEN_SUFFIX = ".merged"


@dataclass(frozen=True, slots=True)
class Journal:
    """The content of the journal.

    Attributes:
        number: counts changes of the journal, so that a reader notices a compaction that began and ended.
        old: names of the shards that are being replaced.
        new: name of the shard that replaces them; "" if there is no compaction.
    """

    number: int = 0
    old: tuple[str, ...] = ()
    new: str = ""


def shard_uris(uri: str) -> list[str]:
    """List the shards at one instant, sorted by name; correct also during a compaction.

    Raises:
        FeatureSetError: if the journal is damaged.
    """
    while True:
        journal = read_journal(uri)
        names = _names(uri)
        if read_journal(uri) == journal:
            break
    counted = {name: name for name in names if name.endswith(".parquet") and name not in journal.old}
    if journal.new:
        counted.setdefault(journal.new, _hidden(journal.new))
    return [storage.join(uri, SHARDS, counted[name]) for name in sorted(counted)]


def read_journal(uri: str) -> Journal:
    """Read the journal; there is none before the first compaction.

    Raises:
        FeatureSetError: if it is damaged.
    """
    path = storage.join(uri, JOURNAL)
    try:
        content = json.loads(storage.read_bytes(path))
        journal = Journal(int(content["number"]), tuple(content["old"]), content["new"])
    except StorageError as error:
        if isinstance(error.__cause__, FileNotFoundError):
            return Journal()
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise FeatureSetError(f"{path} is damaged ({error}): delete it, then run skipreel features verify") from error
    for name in (*journal.old, *filter(None, [journal.new])):
        # Files of these names are deleted and renamed, so a name must not point outside the folder.
        if not isinstance(name, str) or not re.fullmatch(r"\w[\w.-]*\.parquet", name):
            raise FeatureSetError(
                f"{path} names {name!r}, which is not a shard: delete it, then run skipreel features verify"
            )
    return journal


def hidden_uri(uri: str, name: str) -> str:
    """The URI to write a merged shard to, before `replace` makes it count."""
    return storage.join(uri, SHARDS, _hidden(name))


def replace(uri: str, old: Sequence[str], new: str) -> None:
    """Replace shards by the one that was written to `hidden_uri`; hold `card.locked`."""
    _write(uri, Journal(read_journal(uri).number + 1, tuple(old), new))
    recover(uri)


def recover(uri: str) -> None:
    """Finish an interrupted `replace`, and delete merged shards that never counted; hold `card.locked`."""
    journal, names = read_journal(uri), _names(uri)
    if journal.new:
        is_hidden = _hidden(journal.new) in names
        # Old files first, so that other readers never see a row twice.
        for name in journal.old if is_hidden or journal.new in names else ():
            storage.delete(storage.join(uri, SHARDS, name))
        if is_hidden:
            rename_file(hidden_uri(uri, journal.new), storage.join(uri, SHARDS, journal.new))
        _write(uri, Journal(journal.number + 1))
    for name in _names(uri):
        if name.endswith(HIDDEN_SUFFIX):
            storage.delete(storage.join(uri, SHARDS, name))


def _hidden(name: str) -> str:
    return f".{name}{HIDDEN_SUFFIX}"


def rename_file(uri: str, target: str) -> None:
    """Rename a file within its file system."""
    filesystem, path = storage.resolve(uri)
    with explained("write", target):
        filesystem.move(path, storage.resolve(target)[1])


def _names(uri: str) -> list[str]:
    return [name for name in storage.list_tree(storage.join(uri, SHARDS)) if "/" not in name]


def _write(uri: str, journal: Journal) -> None:
    storage.write_atomic(storage.join(uri, JOURNAL), json.dumps(asdict(journal)).encode())


def name_of(shard_uri: str) -> str:
    """The file name in a shard's URI, which may have a query."""
    return storage.resolve(shard_uri)[1].rpartition("/")[2]
