import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from proteus.data import CorruptImageError, ImageLoader, open_source
from proteus.data.places import number_labels
from proteus.evaluate import logistic_regression
from proteus.evaluation import knn_predict, open_labelled, read_packs
from proteus.evaluation.sets.named import NAMED_SETS, VOC_CLASSES, metric_of, open_named, voc_target
from proteus.evaluation.suite.sets import find_sets

COLOURS = {"cat": "red", "dog": "blue", "owl": "lime"}
PACKS = Path(__file__).parents[4] / "shared" / "data"


def folder_of(root, classes, count=2):
    for name in classes:
        (root / name).mkdir(parents=True)
        for n in range(count):
            Image.new("RGB", (12, 10), COLOURS[name]).save(root / name / f"{n}.png")
    return root


def pack(path, labels, missing=()):
    with tarfile.open(path, "w") as tar:
        for n, label in enumerate(labels):
            picture = io.BytesIO()
            Image.new("RGB", (12, 10), (n * 20, 0, 0)).save(picture, "JPEG")
            members = {f"{n:06}.jpg": picture.getvalue(), f"{n:06}.cls": str(label).encode()}
            for name, content in members.items():
                if name not in missing:
                    info = tarfile.TarInfo(name)
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))


def targets(data):
    return [data.target(i) for i in range(len(data))]


def test_a_folder_for_each_class_in_a_folder_for_each_split(tmp_path):
    folder_of(tmp_path / "train", ["cat", "dog", "owl"])
    folder_of(tmp_path / "val", ["cat", "owl"], 1)
    train = open_labelled(tmp_path, split="train")
    assert train.classes == ("cat", "dog", "owl")
    assert targets(train) == [0, 0, 1, 1, 2, 2]
    # The test split lacks a class; the others must not move. ImageNet calls it val.
    test = open_labelled(tmp_path, split="test", classes=train.classes)
    assert targets(test) == [0, 2]
    assert test[1][0].getpixel((0, 0)) == (0, 255, 0)
    with pytest.raises(ValueError, match=r"among those of training. Got \['cat'\]"):
        open_labelled(tmp_path, split="test", classes=["dog", "owl"])


def test_a_split_that_is_not_there_is_named(tmp_path):
    folder_of(tmp_path, ["cat", "dog"])
    with pytest.raises(ValueError, match="train"):
        open_labelled(tmp_path, split="train")
    assert len(open_labelled(tmp_path)) == 4


def test_packs_take_the_number_beside_the_image(tmp_path):
    pack(tmp_path / "birds-train-000.tar", [4, 0, 1])
    pack(tmp_path / "birds-train-001.tar", [2])
    assert targets(open_labelled(tmp_path / "birds", split="train")) == [4, 0, 1, 2]
    with pytest.raises(ValueError, match="Splits there: train"):
        open_labelled(tmp_path / "birds", split="test")


def test_a_pack_opens_where_other_shards_of_its_index_are_missing(tmp_path):
    pack(tmp_path / "birds-train-000.tar", [0, 1])
    sets = [
        {
            "name": name, "role": "fine-grained", "task": "classification",
            "classes": ["jay", "owl"],
            "splits": [{"split": "train", "shards": [{"file": f"{name}-train-000.tar"}]}],
        }
        for name in ("birds", "cars")
    ]  # fmt: skip
    (tmp_path / "index.json").write_text(json.dumps({"sets": sets}))
    assert open_labelled(tmp_path / "birds", split="train").classes == ("jay", "owl")
    with pytest.raises(ValueError, match=r"shards of 'cars' are missing. Got no .*cars-train-000"):
        read_packs(tmp_path)


def test_missing_labels_are_an_error_that_counts_them(tmp_path):
    pack(tmp_path / "birds-train-000.tar", [1, 0], missing=["000001.cls"])
    with pytest.raises(ValueError, match=r"Got 1 of 2 .*000001.jpg"):
        open_labelled(tmp_path / "birds", split="train")
    flat = tmp_path / "flat"
    flat.mkdir()
    Image.new("RGB", (9, 9)).save(flat / "a.png")
    with pytest.raises(ValueError, match="without a label"):
        open_labelled(flat)
    assert targets(open_labelled(flat, labels=False)) == [0]
    with pytest.raises(ValueError, match="item 0 of the dataset has no label"):
        open_labelled([Image.new("RGB", (9, 9))]).target(0)


@pytest.mark.parametrize("target", [0.7, float("nan"), "cat", None, torch.tensor(0.5)])
def test_a_target_that_is_no_class_number_is_an_error_and_not_rounded(target):
    data = open_labelled([(Image.new("RGB", (9, 9)), target)])
    with pytest.raises(ValueError, match="item 0 of the dataset has no label"):
        data.target(0)
    soft = open_labelled([(Image.new("RGB", (9, 9)), torch.tensor([0.7, 0.3]))])
    with pytest.raises(ValueError, match="must be 0 or 1"):
        soft.target(0)


@pytest.mark.parametrize("target", [2, 2.0, True + 1, np.int64(2), torch.tensor(2)])
def test_a_class_number_may_be_of_any_kind(target):
    found = open_labelled([(Image.new("RGB", (9, 9)), target)]).target(0)
    assert (found, type(found)) == (2, int)


def test_a_dataset_may_hold_several_labels_an_image():
    several = torch.tensor([1, 0, 1])
    data = open_labelled([(Image.new("RGB", (9, 9)), several)])
    assert torch.equal(data[0][1], several)


def test_an_item_is_read_once_for_its_image_and_its_target():
    class Counting(torch.utils.data.Dataset):
        reads = 0

        def __len__(self):
            return 2

        def __getitem__(self, index):
            self.reads += 1
            return Image.new("RGB", (9, 9)), index

    dataset = Counting()
    data = open_labelled(dataset)
    assert [target for _, target in (data[0], data[1])] == [0, 1]
    assert dataset.reads == 2


def test_a_hugging_face_dataset_has_its_labels_in_a_column():
    datasets = pytest.importorskip("datasets")
    features = datasets.Features(
        {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    )
    rows = {"image": [Image.new("RGB", (9, 9))] * 3, "label": [1, 0, 1]}
    data = open_labelled(datasets.Dataset.from_dict(rows, features=features))
    assert (targets(data), data.classes, data[0][0].size) == ([1, 0, 1], ("cat", "dog"), (9, 9))


def test_a_hugging_face_label_that_is_no_number_is_an_error():
    datasets = pytest.importorskip("datasets")
    rows = {"image": [Image.new("RGB", (9, 9))] * 2, "label": ["cat", "dog"]}
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})
    with pytest.raises(ValueError, match=r"Got 'cat' in row 0.*class_encode_column"):
        open_labelled(datasets.Dataset.from_dict(rows, features=features))


def test_the_hash_of_the_content_sees_pixels_and_labels():
    red, blue = Image.new("RGB", (9, 9), "red"), Image.new("RGB", (9, 9), "blue")
    sets = [[(red, 0)], [(red, 1)], [(blue, 0)], [(red, 0), (red, 0)]]
    assert len({open_labelled(data).content_hash() for data in sets}) == 4
    assert open_labelled(sets[0]).content_hash() == open_labelled([(red, 0)]).content_hash()


def test_the_first_images_are_spread_over_the_set():
    data = open_labelled([(Image.new("RGB", (9, 9)), i) for i in range(10)])
    assert targets(data.first(3)) == [0, 3, 6]
    assert data.first(99) is data


def test_objects_marked_difficult_do_not_count():
    things = [("cat", "0"), ("dog", "1"), ("sofa", "0")]
    found = voc_target({"annotation": {"object": [{"name": n, "difficult": d} for n, d in things]}})
    assert [VOC_CLASSES[i] for i in found.nonzero().flatten()] == ["cat", "sofa"]


def test_each_set_of_the_paper_is_scored_as_in_the_paper():
    mean = {name for name in NAMED_SETS if metric_of(name) == "mean_class"}
    assert mean == {"aircraft", "caltech101", "flowers", "pets"}
    assert metric_of("voc2007") == "map_11"
    assert len(NAMED_SETS) == 14
    assert (metric_of("flowers5"), metric_of("butterflies75")) == ("mean_class", "accuracy")


def test_cub_and_sun_are_read_from_their_published_lists(tmp_path):
    cub = tmp_path / "CUB_200_2011"
    (cub / "images").mkdir(parents=True)
    for n in (1, 2):
        Image.new("RGB", (9, 9)).save(cub / "images" / f"{n}.jpg")
    (cub / "images.txt").write_text("1 1.jpg\n2 2.jpg\n")
    (cub / "image_class_labels.txt").write_text("1 1\n2 200\n")
    (cub / "train_test_split.txt").write_text("1 1\n2 0\n")
    assert targets(open_labelled("cub", split="test", root=tmp_path)) == [199]
    sun = tmp_path / "SUN397"
    (sun / "a" / "abbey").mkdir(parents=True)
    Image.new("RGB", (9, 9)).save(sun / "a" / "abbey" / "x.jpg")
    (sun / "ClassName.txt").write_text("/a/zoo\n/a/abbey\n")
    (sun / "Training_01.txt").write_text("/a/abbey/x.jpg\n")
    data = open_labelled("sun397", split="train", root=tmp_path)
    assert (targets(data), data[0][0].size) == ([1], (9, 9))


def test_a_named_set_remembers_how_the_paper_scores_it(tmp_path):
    root = tmp_path / "caltech101"
    (root / "Annotations").mkdir(parents=True)
    (root / "101_ObjectCategories" / "BACKGROUND_Google").mkdir(parents=True)
    for n in range(2):
        folder = root / "101_ObjectCategories" / "ab"[n]
        folder.mkdir()
        for i in range(1, 33):
            Image.new("RGB", (9, 9), ("red", "blue")[n]).save(folder / f"image_{i:04}.jpg")
    train, test = (open_labelled("caltech101", split=s, root=tmp_path) for s in ("train", "test"))
    assert (train.metric, test.first(2).metric) == ("mean_class", "mean_class")
    assert open_labelled([(Image.new("RGB", (9, 9)), 0)]).metric is None
    torch.manual_seed(0)
    model = torch.nn.Conv2d(3, 4, 4, stride=4)
    result = logistic_regression(model, train, test, image_size=8)
    assert (result.metric, result.score) == ("mean_class", 100)


def test_caltech_trains_on_thirty_different_images_a_class_and_tests_on_the_others(tmp_path):
    root = tmp_path / "caltech101"
    (root / "Annotations").mkdir(parents=True)
    for name, count in (("BACKGROUND_Google", 1), ("ant", 33), ("bass", 31)):
        folder = root / "101_ObjectCategories" / name
        folder.mkdir(parents=True)
        for n in range(1, count + 1):
            Image.new("RGB", (9, 9)).save(folder / f"image_{n:04}.jpg")
    train, test = (open_labelled("caltech101", split=s, root=tmp_path) for s in ("train", "test"))
    found = [[data[i][1] for i in range(len(data))] for data in (train, test)]
    assert [found[0].count(c) for c in (0, 1)] == [30, 30]
    assert [found[1].count(c) for c in (0, 1)] == [3, 1]
    numbers = [part.target.dataset.dataset.indices for part in (train, test)]
    assert sorted([*numbers[0], *numbers[1]]) == list(range(64))


def test_a_named_set_says_what_it_lacks(tmp_path):
    with pytest.raises(ValueError, match=r"open_labelled\('flowers', .*root='FOLDER'\)"):
        open_labelled("flowers", split="train")
    with pytest.raises(ValueError, match=r"cars has no such split. Got 'val'"):
        open_named("cars", "val", root=tmp_path)
    with pytest.raises(ValueError, match="download=True"):
        open_named("dtd", "train", root=tmp_path)
    with pytest.raises(ValueError, match="belong to a named set"):
        open_labelled(tmp_path, root=tmp_path)


def test_what_stands_after_data_is_found(tmp_path):
    folder_of(tmp_path / "animals" / "train", ["cat", "dog"])
    folder_of(tmp_path / "animals" / "test", ["cat", "dog"])
    assert find_sets([str(tmp_path / "animals")])[0].name == "animals"
    assert find_sets([f"pets={tmp_path / 'animals'}"])[0].root is None  # split by the user
    assert find_sets([f"pets={tmp_path}"])[0].source == "pets"
    with pytest.raises(ValueError, match="no set there"):
        find_sets(["nowhere"])
    with pytest.raises(ValueError, match=r"names of their own. Got animals"):
        find_sets([str(tmp_path / "animals")] * 2)


@pytest.mark.skipif(not PACKS.is_dir(), reason="the image packs are not part of the repository")
def test_a_folder_of_packs_gives_the_sets_for_evaluation():
    found = find_sets([str(PACKS)])
    assert [one.task for one in found] == ["classification"] * 8 + ["segmentation"] * 2 + ["depth"]
    assert all(one.subset for one in found)
    assert len(read_packs(PACKS)) == 17
    data = open_labelled(PACKS / "flowers5", split="test")
    assert (len(data), data.classes[0]) == (350, "daisy")


def test_what_is_not_measured_is_told(tmp_path, caplog):
    folder_of(tmp_path / "photos", ["cat", "dog"])
    (tmp_path / "photos" / "cat" / "b.heic").write_bytes(b"x")
    open_labelled(tmp_path / "photos")
    assert "passed over 1 other files: 1 not an image: .heic" in caplog.text
    caplog.clear()
    pack(tmp_path / "birds-train-000.tar", [1, 0])
    path = tmp_path / "birds-train-000.tar"
    with tarfile.open(path) as tar:
        at = tar.getmembers()[2].offset
    path.write_bytes(path.read_bytes()[:at])
    assert len(open_labelled(tmp_path / "birds", split="train")) == 1
    assert "1 no end mark: it may be cut" in caplog.text


@pytest.mark.parametrize(
    "names",
    [
        ["1", "2", "10"],
        ["9", "10", "b"],
        ["01", "1", "2"],
        ["é", "e\u0301", "z"],
        ["cat", "cat ", "Cat"],
        ["-1", "0", "1"],
        ["²", "2", "3"],
    ],
)
def test_training_and_evaluation_number_the_classes_of_folders_alike(tmp_path, names):
    for name in names:
        (tmp_path / name).mkdir()
        Image.new("RGB", (12, 10)).save(tmp_path / name / "0.png")
    data = open_labelled(tmp_path)
    classes, numbers = number_labels(open_source(tmp_path))
    assert list(data.classes) == classes
    assert targets(data) == numbers.tolist()
    assert [data.classes[n] for n in targets(data)] == [
        open_source(tmp_path).label(n) for n in range(3)
    ]


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (["0", "3", "10"], [0, 3, 10]),
        (["3\n", " 1 ", "01"], [3, 1, 1]),
        (["cat", "dog\n", "cat"], [0, 1, 0]),
        (["1", "2", "-1"], None),
        (["1", "cat", "2"], None),
        (["1", "2", "9" * 60], None),
    ],
)
def test_training_and_evaluation_number_the_classes_of_shards_alike(tmp_path, labels, expected):
    pack(tmp_path / "a.tar", labels)
    if expected is None:
        for read in (open_labelled, lambda path: number_labels(open_source(path))):
            with pytest.raises(ValueError, match="no class numbers"):
                read(tmp_path / "a.tar")
        return
    data = open_labelled(tmp_path / "a.tar")
    classes, numbers = number_labels(open_source(tmp_path / "a.tar"))
    assert targets(data) == numbers.tolist() == expected
    assert list(data.classes) == classes


def test_a_classifier_of_one_scores_on_the_other(tmp_path):
    for name, colour in (("1", "red"), ("2", "lime"), ("10", "blue")):
        (tmp_path / name).mkdir()
        for n in range(3):
            Image.new("RGB", (12, 10), colour).save(tmp_path / name / f"{n}.png")
    loader = ImageLoader(
        open_source(tmp_path), batch_size=9, image_size=8, workers=0, augment="none", labels=True
    )
    images, labels = next(iter(loader))
    voters = images.float().mean((2, 3))
    data = open_labelled(tmp_path)
    seen = [torch.from_numpy(np.array(data.image(n))).float().mean((0, 1)) for n in range(9)]
    guesses = knn_predict(voters, labels, torch.stack(seen), k=1)
    assert guesses.tolist() == targets(data)


def test_a_corrupt_image_is_named(tmp_path):
    folder_of(tmp_path, ["cat", "dog"])
    (tmp_path / "dog" / "1.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0")
    with pytest.raises(CorruptImageError, match=r"dog/1\.png: damaged, or none of JPEG"):
        open_labelled(tmp_path)[3]
