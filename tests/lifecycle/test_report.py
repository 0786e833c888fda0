"""Reports as data."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from bnjax.linen.lifecycle import Report, Row

ROWS = [
    Row("a/norm", "batch", True, "", {"count": 3.0, "calls": np.int64(2), "nan": np.float32(np.nan)}),
    Row("", "batch", False, "it was not called"),
    Row("b", "Own", False, "`Own` is no norm", {"shape": (1, 2), "value": jnp.float32(0.5), "inf": float("inf")}),
]
REPORT = Report(ROWS)


def test_it_is_a_sequence_and_knows_paths():
    assert len(REPORT) == 3
    assert list(REPORT) == ROWS
    assert (REPORT[0], REPORT[-1], REPORT["a/norm"], REPORT[""]) == (ROWS[0], ROWS[2], ROWS[0], ROWS[1])
    assert list(REPORT[1:]) == ROWS[1:]
    assert REPORT.done == ("a/norm",)
    assert REPORT.refused == ("", "b")
    with pytest.raises(KeyError, match="'c' is no path of this report, which has 'a/norm', '', 'b'"):
        REPORT["c"]
    with pytest.raises(IndexError):
        REPORT[3]


def test_json_can_be_read_again_and_has_no_numbers_that_json_has_not():
    def refuse(constant):
        raise AssertionError(constant)

    rows = json.loads(REPORT.to_json(), parse_constant=refuse)
    assert [row["path"] for row in rows] == ["a/norm", "", "b"]
    assert rows[0]["evidence"]["calls"] == 2
    assert rows[2]["evidence"]["value"] == 0.5
    assert rows[2]["evidence"]["shape"] == [1, 2]


def test_the_table_names_everything():
    text = str(REPORT)
    for word in ("a/norm", "(root)", "Own", "it was not called", "done", "refused", "count 3"):
        assert word in text
    assert "1 done, 2 refused" in repr(REPORT)
    assert str(Report()).count("\n") == 1
