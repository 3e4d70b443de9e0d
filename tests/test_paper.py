"""The paper's numbers stand once, and are found by the names of models and runs."""

import ast
import itertools
from pathlib import Path

import pytest

import proteus
from proteus.paper import PAPER, SETS, paper_scores
from proteus.recipes import RUNS

BY_CHANCE = (81.5, 85.3)  # Tables 13 and 20: two runs, the same scores


def written():
    """The numbers that stand together in the package: of each tuple, list, dict and call."""
    for path in sorted(Path(proteus.__file__).parent.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            match node:
                case ast.Tuple(elts=parts) | ast.List(elts=parts) | ast.Dict(values=parts):
                    pass
                case ast.Call(args=parts, keywords=named):
                    parts = [*parts, *(word.value for word in named)]
                case _:
                    continue
            numbers = {part.value for part in parts if isinstance(part, ast.Constant)}
            yield {number for number in numbers if isinstance(number, float)}


def test_a_score_stands_once():
    together = [numbers for numbers in written() if len(numbers) > 1]
    rows = {tuple(paper_scores(name).values())[:2] for name in (*PAPER, *RUNS)}
    supervised = [row[0] for row in rows if len(row) == 1 and row[0] < 80]  # Tables 11 and 12
    pairs = {row for row in rows if len(row) == 2}
    assert (len(supervised), len(pairs)) == (8, 29)
    for pair in (*pairs, *itertools.pairwise(supervised)):
        places = sum(set(pair) <= numbers for numbers in together)
        assert places == (2 if pair == BY_CHANCE else 1), pair


def test_rows_are_consistent_with_themselves():
    for name, row in PAPER.items():
        if "Aircraft" in row:
            mean = sum(row[title] for title in SETS) / len(SETS)
            assert mean == pytest.approx(row["Average"], abs=0.1), name


def test_what_the_paper_does_not_have_has_no_number():
    assert paper_scores("nobody") == paper_scores("table2-patch") == {}
    assert list(paper_scores("table15-clip-merge").values()) == [87.8]
