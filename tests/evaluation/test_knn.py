import pytest
import torch
import torch.nn.functional as F
from PIL import Image

from conftest import vit
from proteus.evaluate import knn
from proteus.evaluation import FeatureSet, knn_predict, knn_votes, score_knn
from proteus.features import ShapeError


def oracle(train, labels, test, k, temperature):
    predictions = []
    for row in test:
        similar = [float(F.cosine_similarity(row, other, dim=0)) for other in train]
        nearest = sorted(range(len(train)), key=lambda i: -similar[i])[:k]
        votes = {}
        for i in nearest:
            label = int(labels[i])
            votes[label] = votes.get(label, 0) + torch.tensor(similar[i] / temperature).exp()
        predictions.append(max(votes, key=votes.get))
    return predictions


@pytest.mark.parametrize("k", [1, 5, 40])
def test_it_equals_a_loop_over_neighbours(k):
    train, labels, test = torch.randn(40, 6), torch.randint(0, 4, (40,)), torch.randn(30, 6) * 9
    assert knn_predict(train, labels, test, k=k).tolist() == oracle(train, labels, test, k, 0.07)


def test_chunks_do_not_matter():
    train, labels, test = torch.randn(50, 6), torch.randint(0, 4, (50,)), torch.randn(2100, 6)
    whole = knn_predict(train, labels, test, k=7)
    assert torch.equal(whole[1500:], knn_predict(train, labels, test[1500:], k=7))


def test_shapes_and_k_are_checked():
    train, labels = torch.randn(5, 3), torch.zeros(5, dtype=torch.long)
    with pytest.raises(ValueError, match=r"1 … 5.*Got 6"):
        knn_predict(train, labels, train, k=6)
    with pytest.raises(ShapeError, match=r"\(5, 3\).*\(2, 4\)"):
        knn_predict(train, labels, torch.randn(2, 4))
    with pytest.raises(ShapeError, match=r"\(4,\)"):
        knn_predict(train, labels[:4], train, k=1)
    with pytest.raises(ValueError, match=r"1 … 0.*Got 1"):
        knn_predict(train[:0], labels[:0], train, k=1)


def test_a_k_below_one_and_labels_beyond_the_classes_are_errors():
    features, labels = torch.eye(3), torch.arange(3)
    one = FeatureSet(features, features, labels)
    for k in (0, -1):
        with pytest.raises(ValueError, match=rf"1 … 3.*Got {k}"):
            score_knn(one, one, ks=[k, 1])
    with pytest.raises(ValueError, match=r"in 0 … 1. Got 0 to 2"):
        knn_votes(features, labels, features, [1], num_classes=2)
    with pytest.raises(ValueError, match="1 labels below 0"):
        score_knn(FeatureSet(features, features, labels - 1), one, ks=[1])


def test_a_model_that_is_not_square_says_so():
    images = [(Image.new("RGB", (8, 8), colour), i) for i, colour in enumerate(["red", "blue"])]
    model = vit(size=(32, 64))
    with pytest.raises(ValueError, match=r"square image size is needed. Got a model for 32x64"):
        knn(model, images, images, ks=[1])
    assert knn(model, images, images, ks=[1], image_size=32).image_size == 32


def test_a_smaller_k_sums_the_first_of_the_largest_ks_votes():
    train, labels, test = torch.randn(60, 6), torch.randint(0, 4, (60,)), torch.randn(9, 6)
    votes = knn_votes(train, labels, test, [5, 30], temperature=0.07, num_classes=6)
    similarity = F.normalize(test, dim=1) @ F.normalize(train, dim=1).T
    nearest = similarity.argsort(1, descending=True)[:, :30]
    weights = (similarity.gather(1, nearest) / 0.07).softmax(1)
    for k in (5, 30):
        expected = torch.zeros(9, 6)
        for row in range(9):
            for place in range(k):
                expected[row, labels[nearest[row, place]]] += weights[row, place]
        torch.testing.assert_close(votes[k], expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(votes[30].sum(1), torch.ones(9))
    assert (votes[5].sum(1) < 1).all()


def test_a_bank_in_pieces_gives_the_same_votes(monkeypatch):
    train, labels, test = torch.randn(50, 6), torch.randint(0, 4, (50,)), torch.randn(20, 6)
    whole = knn_votes(train, labels, test, [3, 20])
    monkeypatch.setattr("proteus.evaluation.knn._BANK", 7)
    monkeypatch.setattr("proteus.evaluation.knn._QUERIES", 6)
    torch.testing.assert_close(knn_votes(train, labels, test, [3, 20]), whole)


def test_a_set_with_one_class_or_several_labels_is_an_error():
    x = torch.randn(4, 3)
    with pytest.raises(ValueError, match=r"one class only.*\[1\]"):
        score_knn(FeatureSet(x, x, torch.ones(4).long()), FeatureSet(x, x, torch.arange(4)))
    several = FeatureSet(x, x, torch.ones(4, 5).long())
    with pytest.raises(ValueError, match="one label an image"):
        score_knn(several, several)


def test_a_class_without_training_images_counts_as_wrong():
    bank = FeatureSet(torch.eye(3), torch.eye(3), torch.tensor([0, 1, 1]))
    test = FeatureSet(torch.eye(3), torch.eye(3), torch.tensor([0, 1, 7]))
    result = score_knn(bank, test, ks=[1])
    assert result.num_classes == 8
    assert result.best == pytest.approx(200 / 3)


def test_a_class_that_the_test_folder_lacks_does_not_shift_the_others(tmp_path):
    for split, names in (("train", "abc"), ("test", "ac")):
        for name in names:
            (tmp_path / split / name).mkdir(parents=True)
            colour = {"a": "red", "b": "lime", "c": "blue"}[name]
            Image.new("RGB", (8, 8), colour).save(tmp_path / split / name / "0.png")
    torch.manual_seed(0)
    result = knn(torch.nn.Conv2d(3, 5, 4, stride=4), tmp_path, tmp_path, ks=[1], image_size=8)
    assert result.best == 100
    assert result.predictions.tolist() == [0, 2]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("part", ["train", "test"])
def test_features_that_are_not_finite_are_an_error(part, value):
    features = {"train": torch.eye(3), "test": torch.eye(3)}
    features[part][1, 2] = value
    train, test, labels = features["train"], features["test"], torch.arange(3)
    message = rf"not finite. Got NaN or infinity in 1 of 3 {part} features, first in number 1"
    with pytest.raises(ValueError, match=message):
        knn_predict(train, labels, test, k=1)
    with pytest.raises(ValueError, match=r"not finite. Got NaN or infinity in 1 of 3 images"):
        score_knn(FeatureSet(train, train, labels), FeatureSet(test, test, labels), ks=[1])
