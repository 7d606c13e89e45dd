"""The benchmark of reading runs, and stops where a way of reading is wrong; its figures are not tested."""

import json

import pytest

from benchmarks import reading
from skipreel.features.feature_set.shard_reader import ShardFile

TINY = reading.Settings(dims=(16,), megabytes=1, rounds=1)


def test_the_table_and_its_json(tmp_path, capsys):
    path = tmp_path / "rows.json"
    reading.main(reading.Settings(**{**vars(TINY), "json": path}))
    rows = json.loads(path.read_text())
    assert [row["name"] for row in rows] == [
        "reading/16/read_new_memory",
        "reading/16/read_same_memory",
        "reading/16/np.load_and_pad",
        "reading/16/Arrow",
    ]
    assert rows[0]["target"] == 0.5
    assert all(row["ours"] > 0 and row["ratio"] > 0 for row in rows)
    assert "index" in capsys.readouterr().out


def test_nothing_is_timed_that_is_wrong(monkeypatch):
    right = ShardFile.read_features

    def wrong(self, first_row, num_rows, out):
        right(self, first_row, num_rows, out)
        out[-1, -1] += 1

    monkeypatch.setattr(ShardFile, "read_features", wrong)
    with pytest.raises(SystemExit, match="differs: nothing is timed"):
        reading.measure(16, TINY)
