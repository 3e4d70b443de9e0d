"""The pages whose tables are generated, and what they are said to show."""

import importlib
import json
from pathlib import Path
from statistics import median

import pytest

from proteus.recipes.accelerators import OURS

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


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def test_the_share_of_an_h100_is_what_the_runs_come_to(benchmark):
    utilisation = benchmark("utilisation")
    found = json.loads(utilisation.RESULTS.read_text())
    rows = utilisation.rows_of(utilisation.RUNS)
    share = utilisation.share(found["flops_an_image"], rows)
    assert pytest.approx(share, rel=1e-2) == OURS.of_peak
    assert f"{len(rows)} runs" in OURS.source
    assert f"{utilisation.JOBS} at once" in OURS.source


@pytest.mark.parametrize("number", [0, pytest.param(-1, marks=pytest.mark.slow)])
def test_the_operations_of_the_pairs_are_those_of_their_modules(benchmark, number):
    utilisation = benchmark("utilisation")
    pair = utilisation.PAIRS[number]
    found = json.loads(utilisation.RESULTS.read_text())["flops_an_image"]
    assert utilisation.count(utilisation.objective(pair)).flops == found[pair.key]


def test_the_page_of_plans_is_what_was_measured(benchmark):
    page = benchmark("plan_page")
    text = page.PAGE.read_text()
    assert text == page.page_with_table(text, json.loads(page.RESULTS.read_text()))


def test_the_page_of_speeds_is_what_was_measured(benchmark):
    page = benchmark("speed_page")
    text = page.PAGE.read_text()
    assert text == page.page(text)


def test_what_the_page_of_speeds_says_of_its_tables_holds(benchmark):
    page = benchmark("speed_page")
    found = {facts["settings"]["student"]: facts for facts in page.steps()}
    small, tiny = found["vit_small_patch14"], found["vit_tiny_patch14"]
    text = " ".join(page.PAGE.read_text().split())

    def times(facts, way, of):
        return median(page.ratios(facts, way, of))

    def share(facts, way):
        return facts["mebibytes"][way] / facts["mebibytes"]["authors"]

    of_live, of_prepared = ([times(x, "authors", of) for x in (tiny, small)]
                            for of in ("ours", "prepared"))  # fmt: skip
    assert "{:.2f} and {:.2f} times their step".format(*of_live) in text
    assert "{:.2f} and {:.2f} times the authors' step".format(*of_prepared) in text
    memory = [share(facts, way) for way in ("ours", "prepared") for facts in (tiny, small)]
    assert "takes {:.2f} and {:.2f} of the memory".format(*memory[:2]) in text
    assert "with prepared targets {:.2f} and {:.2f};".format(*memory[2:]) in text
    peers = [(facts, peer) for facts in (tiny, small) for peer in ("lightly", "timm")]
    faster = [1 - times(facts, peer, "ours") for facts, peer in peers]
    assert f"by {100 * min(faster):.0f} to {100 * max(faster):.0f} %" in text
    assert all(0.7 < times(facts, "prepared", peer) < 0.8 for facts, peer in peers)


def test_the_page_of_cheaper_runs_is_what_was_measured(benchmark):
    page = benchmark("fast_page")
    text = page.PAGE.read_text()
    assert text == page.page(text)


def test_what_the_page_says_of_cheaper_runs_holds(benchmark):
    page = benchmark("fast_page")
    for runs in page.sets(page.rows_of(page.RESULTS)).values():
        paper = page.paper_of(runs)
        for way in runs:
            kept = [page.kept(runs, way, score) for score in page.SCORES]
            spent = sum(page.cost(runs, way)) / len(page.cost(runs, way))
            if way.name == "prepared" and way.epochs == paper.epochs:
                assert min(kept) > 0.95
                assert 0.6 < spent < 0.8
            if way.name in ("small", "both"):
                assert max(kept) < 0.95
            if way.epochs < paper.epochs:
                assert min(kept) > 0.85
                assert spent < 0.6


def test_the_page_of_devices_is_what_was_measured(benchmark):
    page = benchmark("device_page")
    text = page.PAGE.read_text()
    facts = json.loads(page.RESULTS.read_text())
    assert text == page.page_with_table(text, facts)
    written = [row for row in facts["rows"] if "refused" not in row]
    assert min(min(row["cls"], row["patches"]) for row in written) >= 0.99


def test_what_the_page_of_devices_says_of_its_table_holds(benchmark):
    rows = json.loads(benchmark("device_page").RESULTS.read_text())["rows"]
    fp16, int8 = ({r["model"]: r for r in rows if r["dtype"] == d} for d in ("fp16", "int8"))
    kept = {name: len(row["kept_float"]) for name, row in int8.items()}
    assert {name for name, count in kept.items() if count == 0} == {
        "demo-teacher", "vit_tiny_patch16_224", "resnet18",
    }  # fmt: skip
    assert {name for name, count in kept.items() if count == 1} == {
        "mobilenetv3_small_100", "mobilenetv4_conv_small",
    }  # fmt: skip
    for name in ("efficientnet_lite0", "mobilenetv2_100"):
        row = int8[name]
        assert kept[name] >= row["layers"] / 3
        assert row["size"] < 0.35 * row["fp32_size"]
    slower = {name for name, row in int8.items() if row["latency"] > row["fp32_latency"]}
    assert slower == {"mobilenetv3_small_100"}
    assert all(row["latency"] > row["fp32_latency"] for row in fp16.values())
