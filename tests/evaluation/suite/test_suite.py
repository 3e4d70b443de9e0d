import io
import json
import re
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import proteus
from conftest import vit
from proteus.cli import main
from proteus.evaluation import FeatureCache, as_extractor
from proteus.evaluation.suite import runner as run
from proteus.evaluation.suite.find_sets import find_sets
from proteus.evaluation.suite.paper_rows import paper_score
from proteus.evaluation.suite.presets import SuiteSettings
from proteus.evaluation.suite.protocols import OpenSet
from proteus.evaluation.suite.results_page import failures, result_tables, write_tables
from proteus.evaluation.suite.runner import SuiteRun
from proteus.hub.pretrained import PRETRAINED
from proteus.paper import PAPER

SHARED = Path(__file__).parents[4] / "shared" / "data"


def member(tar, name, content):
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def png(array):
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


def write_pack(folder, name, splits, classes=2):
    """Images whose brightness is their class; with maps for a dense set."""
    random, entries = np.random.default_rng(0), []
    task = name.partition("-")[0]
    for split, count in splits.items():
        shard = folder / f"{name}-{split}-000.tar"
        with tarfile.open(shard, "w") as tar:
            for n in range(count):
                pixels = random.integers(0, 100, (36, 40, 3), dtype=np.uint8)
                label = n % classes
                pixels[: 18 if task == "segmentation" else 36] += 150 * label // max(1, classes - 1)
                member(tar, f"{n:06}.jpg", png(pixels))
                if task == "segmentation":
                    found = np.zeros((36, 40), np.uint8)
                    found[:18] = label
                    member(tar, f"{n:06}.seg.png", png(found))
                elif task == "depth":
                    member(tar, f"{n:06}.depth.png", png(np.full((36, 40), 1500, np.uint16)))
                else:
                    member(tar, f"{n:06}.cls", str(label).encode())
        entries.append({"split": split, "count": count, "shards": [{"file": shard.name}]})
    dense = task in ("segmentation", "depth")
    return {
        "name": name,
        "role": task if dense else "fine-grained",
        "task": task if dense else "classification",
        "num_classes": 0 if task == "depth" else classes,
        "classes": [f"class {c}" for c in range(classes)],
        "splits": entries,
    }


@pytest.fixture
def packs(tmp_path):
    folder = tmp_path / "packs"
    folder.mkdir()
    sets = [
        write_pack(folder, "flowers5", {"train": 24, "test": 12}, classes=3),
        write_pack(folder, "digits", {"train": 24, "test": 12}),
        write_pack(folder, "segmentation-a", {"train": 8, "test": 4}),
        write_pack(folder, "depth-a", {"train": 8, "test": 4}),
    ]
    (folder / "index.json").write_text(json.dumps({"sets": sets}))
    return folder


def run_of(packs, out, model=None, **settings):
    torch.manual_seed(0)
    quick = {"linear_iterations": 20, "linear_batch": 16, "segmentation_iterations": 3,
             "depth_iterations": 3}  # fmt: skip
    return SuiteRun(
        model=as_extractor(model or vit(depth=4)),
        name="proteus-vit-b14",
        out=out,
        settings=SuiteSettings(32, **{**quick, **settings}),
        cache=FeatureCache(out / "cache"),
    )


ALL = ["knn", "linear", "finegrained", "segmentation", "depth", "robustness"]


def test_every_protocol_runs_on_every_set_that_fits_it(packs, tmp_path):
    run = run_of(packs, tmp_path / "out")
    results = run.run(ALL, find_sets([str(packs)]))
    assert not failures(results)
    assert set(results) == {
        *(f"{p}/{s}" for p in ("knn", "linear", "finegrained", "robustness")
          for s in ("flowers5", "digits")),
        "segmentation/segmentation-a", "depth/depth-a",
    }  # fmt: skip
    assert results["knn/digits"]["best"] == 100
    assert results["finegrained/flowers5"]["metric"] == "mean_class"
    stored = json.loads((tmp_path / "out" / "results.json").read_text())
    assert stored["results"] == json.loads(json.dumps(results))
    write_tables(tmp_path / "out", run.name, results, settings={"image_size": 32})
    text = (tmp_path / "out" / "results.md").read_text()
    # The set is a part of Flowers: the paper's number stands there in brackets.
    assert "(99.4)" in text
    assert "| mean |" in text
    page = (tmp_path / "out" / "report.html").read_text()
    assert "<table>" in page and "<tfoot><tr><td>mean</td>" in page
    assert "scores" in page and "Some sets are parts of public ones" in page


def test_what_is_finished_is_not_repeated_unless_something_changed(packs, tmp_path, monkeypatch):
    sets = find_sets([str(packs / "digits")])
    first = run_of(packs, tmp_path / "out").run(["knn"], sets)
    ran = []
    monkeypatch.setattr(OpenSet, "_knn", lambda self: ran.append(self.one.name) or {"best": 0.0})
    assert run_of(packs, tmp_path / "out").run(["knn"], sets) == json.loads(json.dumps(first))
    assert not ran
    run_of(packs, tmp_path / "out", limit=20).run(["knn"], sets)
    run_of(packs, tmp_path / "out", model=vit(depth=3)).run(["knn"], sets)
    assert ran == ["digits", "digits"]


def test_a_set_that_cannot_be_measured_is_told_and_the_others_go_on(packs, tmp_path):
    entry = write_pack(packs, "single", {"train": 12, "test": 12}, classes=1)
    index = json.loads((packs / "index.json").read_text())
    (packs / "index.json").write_text(json.dumps({"sets": [entry, *index["sets"]]}))
    run = run_of(packs, tmp_path / "out")
    results = run.run(["knn"], find_sets([str(packs)]))
    assert [reason.split(":")[0] for reason in failures(results)] == ["knn/single"]
    assert "one class only" in results["knn/single"]["error"]
    assert results["knn/digits"]["best"] == 100
    assert ["single", "error"] in result_tables("mine", results)["Classification"].rows
    assert (
        "error"
        in run_of(packs, tmp_path / "out").run(["knn"], find_sets([str(packs)]))["knn/single"]
    )  # tried again, not taken from the file


def test_a_file_of_results_never_mixes_models_or_settings(packs, tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(OpenSet, "_knn", lambda self: {"best": 0.0})
    digits, flowers = find_sets([str(packs / "digits"), str(packs / "flowers5")])
    file = tmp_path / "out" / "results.json"
    run_of(packs, tmp_path / "out").run(["knn"], [digits])
    run_of(packs, tmp_path / "out").run(["knn"], [flowers])
    assert set(json.loads(file.read_text())["results"]) == {"knn/digits", "knn/flowers5"}
    assert not caplog.records
    run_of(packs, tmp_path / "out", model=vit(depth=3)).run(["knn"], [flowers])
    assert set(json.loads(file.read_text())["results"]) == {"knn/flowers5"}
    assert "are replaced" in caplog.text
    run_of(packs, tmp_path / "out", model=vit(depth=3), limit=5).run(["knn"], [digits])
    assert set(json.loads(file.read_text())["results"]) == {"knn/digits"}


@pytest.fixture
def measured(packs, tmp_path, monkeypatch):
    """A finished run of one set, its file, and what is measured from now on."""
    ran = []
    monkeypatch.setattr(OpenSet, "_knn", lambda self: ran.append(self.one.name) or {"best": 50.0})
    digits, flowers = find_sets([str(packs / "digits"), str(packs / "flowers5")])
    run_of(packs, tmp_path / "out").run(["knn"], [digits])
    ran.clear()
    return digits, flowers, tmp_path / "out/results.json", ran


FALSE_RESULTS = {
    "empty": lambda text: "",
    "cut": lambda text: text[:-9],
    "a list": lambda text: "[]",
    "null": lambda text: "null",
    "too deep": lambda text: "[" * 100_000,
    "a wrong digit": lambda text: text.replace("50.0", "90.0"),
    "no results": lambda text: json.dumps({**json.loads(text), "results": []}),
    "results of another shape": lambda text: json.dumps(
        {k: v for k, v in json.loads(text).items() if k != "digest"}
        | {"results": {"knn/digits": {"best": "x", "stamp": 3}}}
    ),
}


@pytest.mark.parametrize("damage", FALSE_RESULTS)
def test_damaged_results_are_told_and_measured_again(packs, measured, damage, caplog):
    digits, _, file, ran = measured
    right = file.read_text()
    file.write_text(FALSE_RESULTS[damage](right))
    results = run_of(packs, file.parent).run(["knn"], [digits])
    assert results["knn/digits"]["best"] == 50
    assert ran == ["digits"]
    assert "results.json is damaged, and its results are measured again" in caplog.text
    assert json.loads(file.read_text())["results"] == results


def test_two_evaluations_in_one_folder_keep_each_other_s_results(packs, measured, monkeypatch):
    digits, flowers, file, _ = measured
    first = run_of(packs, file.parent)

    def meanwhile(self):
        run_of(packs, file.parent).run(["finegrained"], [digits])
        return {"best": 1.0}

    monkeypatch.setattr(OpenSet, "_finegrained", lambda self: {"best": 2.0})
    monkeypatch.setattr(OpenSet, "_linear", meanwhile)
    first.run(["linear"], [flowers])
    stored = json.loads(file.read_text())["results"]
    assert set(stored) == {"knn/digits", "finegrained/digits", "linear/flowers5"}
    assert set(run_of(packs, file.parent).run(["linear"], [flowers])) == {"linear/flowers5"}


def test_another_model_s_evaluation_in_the_same_folder_stops_this_one(packs, measured, monkeypatch):
    digits, flowers, file, _ = measured

    def meanwhile(self):
        monkeypatch.setattr(OpenSet, "_linear", lambda self: {"best": 2.0})
        run_of(packs, file.parent, model=vit(depth=3)).run(["linear"], [digits])
        return {"best": 1.0}

    monkeypatch.setattr(OpenSet, "_linear", meanwhile)
    with pytest.raises(ValueError, match=r"another evaluation writes here.*results\.json"):
        run_of(packs, file.parent).run(["linear"], [flowers])
    assert set(json.loads(file.read_text())["results"]) == {"linear/digits"}


def test_numbers_that_are_not_finite_are_none_in_the_file(packs, tmp_path, monkeypatch):
    found = {"distances": {"cls_cosine": float("nan")}, "cka_cls": float("inf")}
    monkeypatch.setattr(OpenSet, "_knn", lambda self: found)
    run = run_of(packs, tmp_path / "out")
    one = run.run(["knn"], find_sets([str(packs / "digits")]))["knn/digits"]
    assert (one["distances"], one["cka_cls"]) == ({"cls_cosine": None}, None)


def test_names_of_sets_and_models_are_no_markup_in_tables(tmp_path):
    name = "a|b\n# c <script>alert(1)</script> [x](http://y) $\\frac \x1b[31m \udcff"
    results = {
        f"knn/{name}": {"best": 50.0, "best_k": 20},
        f"linear/{name}": {"error": name},
    }
    write_tables(tmp_path, name, results, settings={"a": name})
    text = (tmp_path / "results.md").read_text(encoding="utf-8")
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "<script" not in text and page.count("<script") == 1
    assert not re.search(r"^# c|[\x1b]|[^\\]\]\(", text, re.MULTILINE)
    rows = [line for line in text.splitlines() if line.startswith("| a")]
    assert [len(re.findall(r"(?<!\\)\|", row)) for row in rows] == [4]


@pytest.mark.parametrize("file", ["log.jsonl", "report.html", None])
def test_results_never_go_where_a_run_is(packs, tmp_path, capsys, file):
    out = tmp_path / "run"
    if file is None:
        out.write_text("a file")
    else:
        out.mkdir()
        (out / file).write_text("<title>Run first</title>")
    words = ["evaluate", "no-model", "--data", str(packs / "digits"), "--out", str(out)]
    assert main(words) == 2
    error = capsys.readouterr().err
    assert "results cannot go there" in error or "one page does not replace another" in error


def test_results_of_another_version_of_the_library_are_not_reused(packs, tmp_path, monkeypatch):
    sets, ran = find_sets([str(packs / "digits")]), []
    monkeypatch.setattr(OpenSet, "_knn", lambda self: ran.append(1) or {"best": 0.0})
    run_of(packs, tmp_path / "out").run(["knn"], sets)
    monkeypatch.setattr(run, "__version__", "0.0.0")
    run_of(packs, tmp_path / "out").run(["knn"], sets)
    assert len(ran) == 2


def test_a_second_run_sees_the_set_that_is_there_now(packs, tmp_path):
    run = run_of(packs, tmp_path / "out")
    sets = find_sets([str(packs / "digits")])
    assert run.run(["knn"], sets)["knn/digits"]["num_train"] == 24
    write_pack(packs, "digits", {"train": 30, "test": 16})
    assert run.run(["knn"], sets)["knn/digits"]["num_train"] == 30
    other = tmp_path / "other"
    other.mkdir()
    (other / "index.json").write_text(
        json.dumps({"sets": [write_pack(other, "digits", {"train": 20, "test": 10})]})
    )
    assert run.run(["knn"], find_sets([str(other)]))["knn/digits"]["num_train"] == 20


def test_a_row_never_mixes_two_sets_of_one_name(packs, tmp_path, monkeypatch):
    for name in ("_knn", "_linear"):
        monkeypatch.setattr(OpenSet, name, lambda self: {"best": 0.0})
    digits, flowers = find_sets([str(packs / "digits"), str(packs / "flowers5")])
    run_of(packs, tmp_path / "out").run(["knn"], [digits, flowers])
    write_pack(packs, "digits", {"train": 30, "test": 16})
    run = run_of(packs, tmp_path / "out")
    run.run(["linear"], [digits])
    assert set(run.results) == {"knn/flowers5", "linear/digits"}
    stored = json.loads((tmp_path / "out" / "results.json").read_text())["results"]
    assert stored == run.results


def test_a_name_that_ends_like_another_is_another_set(packs, tmp_path, monkeypatch):
    monkeypatch.setattr(OpenSet, "_knn", lambda self: {"best": 0.0})
    sets = find_sets([f"old/digits={packs / 'flowers5'}", f"digits={packs / 'digits'}"])
    results = run_of(packs, tmp_path / "out").run(["knn"], sets)
    assert set(results) == {"knn/old/digits", "knn/digits"}


def test_a_run_that_is_killed_keeps_what_is_finished(packs, tmp_path, monkeypatch):
    ran = []

    def measure(self):
        ran.append(self.one.name)
        if len(ran) == 2:
            raise KeyboardInterrupt
        return {"best": 0.0}

    monkeypatch.setattr(OpenSet, "_knn", measure)
    sets = find_sets([str(packs / "digits"), str(packs / "flowers5")])
    with pytest.raises(KeyboardInterrupt):
        run_of(packs, tmp_path / "out").run(["knn"], sets)
    found = run_of(packs, tmp_path / "out").run(["knn"], sets)
    assert ran == ["digits", "flowers5", "flowers5"]
    assert set(found) == {"knn/digits", "knn/flowers5"}


def test_what_cannot_be_known_again_is_measured_again(packs, tmp_path, monkeypatch):
    class Callable:
        embed_dim = 3

        def __call__(self, images):
            pixels = images.float()
            return proteus.Features(pixels.mean((2, 3)), pixels[:, :, :1].flatten(2).mT, (1, 32))

    ran = []
    monkeypatch.setattr(OpenSet, "_agreement", lambda self: ran.append(1) or {"best": 0.0})
    for _ in range(2):
        run = run_of(packs, tmp_path / "out")
        run.teacher = as_extractor(Callable(), image_size=32)
        run.run(["agreement"], find_sets([str(packs / "digits")]))
    assert len(ran) == 2


def test_a_result_reads_the_same_when_it_is_new_and_from_the_file(packs, tmp_path):
    sets = find_sets([str(packs / "digits")])
    assert run_of(packs, tmp_path / "out").run(["knn"], sets) == run_of(
        packs, tmp_path / "out"
    ).run(["knn"], sets)


def test_of_a_part_of_a_set_the_paper_s_number_is_in_brackets(packs, tmp_path):
    folder = tmp_path / "flowers"
    for split in ("train", "test"):
        for label in range(2):
            (folder / split / str(label)).mkdir(parents=True)
            for n in range(6):
                Image.new("RGB", (40, 40), (100 * label + n,) * 3).save(
                    folder / split / str(label) / f"{n}.png"
                )
    sets = find_sets([f"flowers={folder}"])
    for limit, score in ((None, "99.4"), (10, "(99.4)")):
        run = run_of(packs, tmp_path / "out", limit=limit)
        run.run(["finegrained"], sets)
        (table,) = result_tables(run.name, run.results).values()
        assert table.rows[0][2] == score


def test_a_mean_over_fewer_sets_than_its_neighbour_is_not_told():
    one = {"best": 50.0}
    results = {"knn/a": one, "knn/b": one, "linear/a": one, "linear/b": {"error": "no"}}
    table = result_tables("mine", results)["Classification"]
    assert table.rows == [["a", "50.0", "50.0"], ["b", "50.0", "error"], ["mean", "50.0", ""]]


def test_numbers_that_could_not_be_measured_are_left_empty():
    agreement = {"distances": {"cls_cosine": 0.5}, "cka_cls": None}
    depth = {"rmse": None, "abs_rel": 0.25, "d1": 0.5}
    tables = result_tables("mine", {"agreement/a": agreement, "depth/b": depth})
    assert tables["Agreement with the teacher"].rows == [["a", "0.500", "", ""]]
    assert tables["Depth"].rows == [["b", "", "0.250", "0.500"]]


def test_a_set_that_cannot_be_opened_does_not_end_the_suite(packs, tmp_path):
    sets = find_sets([str(packs)])
    (packs / "flowers5-test-000.tar").write_bytes(b"cut off")
    results = run_of(packs, tmp_path / "out").run(["knn"], sets)
    assert "error" in results["knn/flowers5"]
    assert results["knn/digits"]["best"] == 100


def test_another_teacher_repeats_the_agreement_only(packs, tmp_path, monkeypatch):
    sets, ran = find_sets([str(packs / "digits")]), []
    for name in ("_knn", "_agreement"):
        monkeypatch.setattr(OpenSet, name, lambda self, name=name: ran.append(name) or {})
    for depth in (1, 2):
        run = run_of(packs, tmp_path / "out")
        run.teacher = as_extractor(vit(depth=depth))
        run.run(["knn", "agreement"], sets)
    assert ran == ["_knn", "_agreement", "_agreement"]


def test_unknown_protocols_and_sets_that_do_not_fit_are_errors(packs, tmp_path):
    run = run_of(packs, tmp_path / "out")
    with pytest.raises(ValueError, match="'tsne'"):
        run.run(["tsne"], find_sets([str(packs)]))
    with pytest.raises(ValueError, match="no set for depth. Got digits"):  # noqa: RUF043
        run.run(["depth"], find_sets([str(packs / "digits")]))
    with pytest.raises(ValueError, match="needs a teacher"):
        run.run(["agreement"], find_sets([str(packs)]))


def test_the_command_writes_tables_pictures_and_a_plain_error(packs, tmp_path, capsys):
    out = tmp_path / "out"
    words = ["evaluate", "demo-student", "--random-weights", "--image-size", "32",
             "--device", "cpu", "--data", str(packs / "digits"), "--suite", "knn,agreement",
             "--teacher", "demo-teacher", "--out", str(out)]  # fmt: skip
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "Agreement with the teacher" in printed
    written = {path.name for path in out.iterdir()}
    assert {"results.json", "results.md", "report.html"} <= written
    assert {"pca.png", "neighbours.png", "scores.png"} <= written
    page = (out / "report.html").read_text()
    assert page.count('class="query"') == 4 and page.count("<h4>teacher</h4>") == 4
    assert page.count("data:image/jpeg") >= 4 * (1 + 2 * 5)
    assert "class 0" in page  # a name, not a number
    assert main([*words[:2], "--data", "nowhere", "--out", str(out)]) == 2
    assert "no set there" in capsys.readouterr().err
    for word in ("tsne", "agreement"):  # said before the model is looked for
        assert main(["evaluate", "no-model", "--suite", word, *words[7:9], "--out", str(out)]) == 2
        assert "suite: " in capsys.readouterr().err
    assert main(["evaluate", str(packs), "--checkpoint", "x", *words[7:9], "--out", str(out)]) == 2
    assert "--checkpoint" in capsys.readouterr().err


def test_tables_hold_what_the_file_of_results_holds(packs, tmp_path, capsys):
    words = ["evaluate", "demo-student", "--random-weights", "--image-size", "32",
             "--device", "cpu", "--out", str(tmp_path / "out"), "--data"]  # fmt: skip
    assert main([*words, str(packs / "digits"), "--suite", "knn"]) == 0
    capsys.readouterr()
    assert main([*words, str(packs / "digits"), "--suite", "finegrained", "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)  # all of it
    assert shown["results"] == json.loads((tmp_path / "out/results.json").read_text())["results"]
    assert set(shown["results"]) == {"knn/digits", "finegrained/digits"}
    assert shown["settings"]["image_size"] == 32
    assert "k-NN (k)" in (tmp_path / "out" / "results.md").read_text()
    # The first set cannot be read, and gets its line; the pictures are of another one.
    (packs / "digits-test-000.tar").write_bytes(b"cut off")
    capsys.readouterr()
    assert main([*words, str(packs), "--suite", "knn", "--limit", "5"]) == 2
    assert "knn/digits" in capsys.readouterr().err
    text = (tmp_path / "out" / "results.md").read_text()
    assert "| digits | error |" in text and "| flowers5 |" in text
    assert (tmp_path / "out" / "neighbours.png").exists()


def test_the_paper_s_rows_are_those_of_the_released_models():
    for name, released in PRETRAINED.items():
        assert PAPER[name]["ImageNet"] == released.scores["ImageNet-1K linear probe"]
        fine = released.scores["Fine-grained, mean of 12 sets, logistic regression"]
        assert PAPER[name]["Average"] == fine
        assert PAPER[name].get("ADE20K fine-tune") == released.scores.get("ADE20K UperNet mIoU")
        assert PAPER[name].get("NYUd fine-tune") == released.scores.get("NYU-Depth V2 RMSE")
    assert paper_score("dinov2_vits14", "segmentation", "ade20k") == 45.7
    assert paper_score("nobody", "finegrained", "flowers") is None
    assert paper_score("dinov2_vits14", "linear", "ImageNet") == 81.1
    assert paper_score("dinov2_vits14", "linear", "imagenet100") is None
    for protocol, name, found in (
        ("segmentation-finetune", "ade20k", 51.0), ("depth-finetune", "nyu", 0.327),
        ("depth", "nyuv2", 0.344), ("segmentation-finetune", "camvid11", None),
    ):  # fmt: skip
        assert paper_score("dinov2_vits14", protocol, name) == found


@pytest.mark.slow
@pytest.mark.skipif(not SHARED.is_dir(), reason="the image packs are not part of the repository")
def test_one_command_on_all_packs_and_a_second_run_from_the_cache(tmp_path):
    words = ["evaluate", "demo-student", "--random-weights", "--image-size", "64",
             "--data", str(SHARED), "--limit", "20", "--device", "cpu",
             "--out", str(tmp_path)]  # fmt: skip
    assert main(words) == 0
    first = (tmp_path / "results.json").read_text()
    assert len(json.loads(first)["results"]) == 8 * 3 + 2 + 1
    assert main(words) == 0
    assert (tmp_path / "results.json").read_text() == first


@pytest.mark.parametrize(("mode", "task"), [("L", "segmentation"), ("I;16", "depth")])
def test_maps_of_sixteen_bits_are_depth_and_not_classes(tmp_path, mode, task):
    maps = tmp_path / "annotations/training"
    maps.mkdir(parents=True)
    Image.new(mode, (8, 8)).save(maps / "a.png")
    (found,) = find_sets([f"mine={tmp_path}"])
    assert found.task == task


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_validation_images_are_found_under_all_their_names(tmp_path, name):
    for part in ("train", "test", name):
        (tmp_path / part).mkdir()
    assert find_sets([f"mine={tmp_path}"])[0].has_val
