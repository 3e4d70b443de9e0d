"""The pages whose tables are generated, and what they are said to show."""

import importlib
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def pairs_page(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("pairs_page")


def test_the_page_of_pairs_is_what_was_measured(pairs_page):
    text = pairs_page.PAGE.read_text()
    assert text == pairs_page.page_with_tables(text, pairs_page.rows_of(pairs_page.RESULTS))


def test_every_rule_is_within_two_hundredths_of_the_pair_with_equal_grids(pairs_page):
    rows = pairs_page.by_pair(pairs_page.rows_of(pairs_page.RESULTS))
    compared = [
        (key, column, apart)
        for key, columns in pairs_page.to_equal_grids(rows).items()
        for column, apart in columns.items()
    ]
    assert [row for row in compared if not row[2] > -0.02] == []
    assert len(compared) == 10
