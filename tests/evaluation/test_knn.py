import pytest
import torch
import torch.nn.functional as F

from proteus import Features
from proteus.evaluation import extract_cls, knn_predict
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


def test_features_of_batches_are_joined():
    class Model:
        embed_dim = 3

        def __call__(self, images):
            return Features(images.mean((2, 3)).half(), images.new_zeros(len(images), 0, 3), (0, 0))

    features = extract_cls(Model(), [torch.ones(2, 3, 4, 4), torch.zeros(3, 3, 4, 4)])
    assert features.dtype == torch.float32
    assert features[:, 0].tolist() == [1, 1, 0, 0, 0]
