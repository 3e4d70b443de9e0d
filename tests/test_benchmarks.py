"""The pages whose tables are generated, and what they are said to show."""

import importlib.util
import sys
from pathlib import Path
from statistics import mean

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


@pytest.fixture
def pairs_page(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    spec = importlib.util.spec_from_file_location("pairs_page", BENCHMARKS / "pairs_page.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    sys.modules.pop("pairs", None)


def test_the_page_of_pairs_is_what_was_measured(pairs_page):
    text = pairs_page.PAGE.read_text()
    assert text == pairs_page.page_with_tables(text, pairs_page.rows_of(pairs_page.RESULTS))


def test_every_rule_is_within_two_hundredths_of_the_pair_with_equal_grids(pairs_page):
    rows = {(r["pair"], r["seed"]): r["student"] for r in pairs_page.rows_of(pairs_page.RESULTS)}
    compared = 0
    for pair in pairs_page.PAIRS:
        first = next(p for p in pairs_page.PAIRS if p.group == pair.group)
        if pair == first or not first.rule.startswith("equal grids: "):
            continue
        for column in ("cls_cosine", "patch_cosine"):
            seeds = [seed for key, seed in rows if key == pair.key]
            apart = [rows[pair.key, s][column] - rows[first.key, s][column] for s in seeds]
            assert mean(apart) > -0.02, (pair.key, column)
            compared += 1
    assert compared == 10
