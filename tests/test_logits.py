import copy

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

import proteus
from conftest import vit
from proteus.features import Features, ShapeError
from proteus.logits import LinearHead, LogitDistiller, LogitLosses, load_linear_head

LABELS = torch.tensor([0, 4, 2, 4])


@pytest.fixture
def classifier():
    return LinearHead(36, 5)


def build(teacher, student, classifier, **options):
    return LogitDistiller(teacher, student, classifier, num_classes=5, **options)


def formula(distiller, images, labels, *, kl, ce, hard=False, temperature=1.0):
    """Eq. 1-3 of the paper, written out with probabilities and loops."""
    student = distiller.head(distiller.student(images).cls)
    features = distiller.teacher(images)
    tokens = torch.cat([features.cls, features.patches.mean(1)], 1)
    teacher = distiller.classifier.linear(tokens)
    divergence = cross = 0.0
    for ours, theirs, label in zip(student, teacher, labels, strict=True):
        p, q = (x.div(temperature).exp() for x in (ours, theirs))
        p, q = p / p.sum(), q / q.sum()
        if hard:
            divergence = divergence - p[theirs.argmax()].log()
        else:
            divergence = divergence - temperature**2 * sum(
                b * (a / b).log() for a, b in zip(p, q, strict=True)
            )
        p = ours.exp() / ours.exp().sum()
        cross = cross - p[label].log()
    divergence, cross = divergence / len(labels), cross / len(labels)
    return kl * divergence + ce * cross, divergence, cross


@pytest.mark.parametrize(
    "options",
    [
        {"kl": 0.5, "ce": 0.5, "hard": True},
        {"kl": 0.5, "ce": 0.5},
        {"kl": 0.3, "ce": 0.7, "temperature": 3.0},
    ],
)
def test_losses_and_gradients_are_the_plain_formula_s(
    teacher, student, classifier, images, options
):
    distiller = build(teacher, student, classifier, **options).double()
    # Larger weights, so that the two sides disagree clearly.
    nn.init.normal_(distiller.head.weight)
    losses = distiller(images, LABELS)
    grads = torch.autograd.grad(losses.total, list(distiller.trainable_parameters()))
    expected = formula(distiller, images, LABELS, **options)
    theirs = torch.autograd.grad(expected[0], list(distiller.trainable_parameters()))
    torch.testing.assert_close(tuple(losses), expected)
    torch.testing.assert_close(grads, theirs)
    assert all(grad.abs().sum() > 0 for grad in grads)


@pytest.mark.parametrize("hard", [True, False])
def test_without_cross_entropy_no_labels_are_needed(teacher, student, classifier, images, hard):
    distiller = build(teacher, student, classifier, kl=1.0, ce=0.0, hard=hard)
    losses = distiller(images)
    assert distiller.num_inputs == 1
    assert losses.ce == 0
    assert losses.total == losses.kl > 0
    assert torch.equal(losses.total, distiller(images, LABELS).total)


def test_without_the_divergence_the_teacher_is_not_run(teacher, student, classifier, images):
    distiller = build(teacher, student, classifier, kl=0.0, ce=1.0)
    teacher.register_forward_hook(lambda *_: pytest.fail("the teacher ran"))
    losses = distiller(images, LABELS)
    assert losses.kl == 0
    torch.testing.assert_close(
        losses.total, F.cross_entropy(distiller.head(student(images).cls), LABELS)
    )


def test_labels_alone_need_no_classifier_and_logits_do(teacher, student, classifier, images):
    alone = build(teacher, student, None, kl=0.0, ce=1.0)
    assert alone(images, LABELS).kl == 0
    assert {name.partition(".")[0] for name in alone.state_dict()} == {"head", "student"}
    with pytest.raises(ValueError, match=r"no classifier. Got None and kl=0.5"):
        build(teacher, student, None)


@pytest.mark.parametrize("nested", [True, False])
def test_the_head_of_a_supervised_model_reads_its_class_token(teacher, images, tmp_path, nested):
    weight, bias = torch.randn(5, 36), torch.randn(5)
    tensors = {"norm.bias": torch.zeros(36), "head.weight": weight, "head.bias": bias}
    torch.save({"model": tensors} if nested else tensors, tmp_path / "deit.pth")
    head = load_linear_head(tmp_path / "deit.pth", 36)
    features = teacher(images)
    torch.testing.assert_close(head(features), F.linear(features.cls, weight, bias))
    with pytest.raises(
        ValueError, match=r"deit\.pth does not fit.*expected weight \[classes, 24\]"
    ):
        load_linear_head(tmp_path / "deit.pth", 24)


def test_deit_s_division_by_the_classes_is_a_weight(teacher, student, classifier, images):
    distiller = build(teacher, student, classifier, kl=0.5 / 5, ce=0.0)
    ours = distiller.head(student(images).cls).log_softmax(1)
    theirs = classifier(teacher(images)).log_softmax(1)
    deit = F.kl_div(ours, theirs, reduction="sum", log_target=True) / ours.numel()
    torch.testing.assert_close(distiller(images).total, 0.5 * deit)


def test_the_mean_over_parts_of_a_batch_is_the_batch_s_loss(teacher, student, classifier):
    distiller, images = build(teacher, student, classifier), torch.rand(4, 3, 32, 32)
    parts = [distiller(images[n::2], LABELS[n::2], part=(n, 2)) for n in range(2)]
    whole = distiller(images, LABELS, generator=torch.Generator())
    torch.testing.assert_close((parts[0].total + parts[1].total) / 2, whole.total)


def test_losses_are_float32_in_half_precision(teacher, student, classifier, images):
    distiller = build(teacher, student, classifier)
    with torch.autocast("cpu", torch.bfloat16):
        losses = distiller(images, LABELS)
    assert isinstance(losses, LogitLosses)
    assert {term.dtype for term in losses} == {torch.float32}


def test_teacher_and_classifier_are_in_no_module_tree_and_follow_it(teacher, student, classifier):
    distiller = build(teacher, student, classifier)
    names = {name.partition(".")[0] for name in distiller.state_dict()}
    assert names == {"student", "head"}
    trainable = {id(p) for p in distiller.trainable_parameters()}
    assert trainable == {id(p) for p in student.backbone.parameters()} | {
        id(p) for p in distiller.head.parameters()
    }
    assert not any(p.requires_grad for p in classifier.parameters())
    distiller.train().double()
    assert not classifier.training
    assert teacher.inputs.mean.dtype == classifier.linear.weight.dtype == torch.float64


def test_a_step_trains_the_student_and_nothing_else(teacher, student, classifier, images):
    before = [copy.deepcopy(m.state_dict()) for m in (student, teacher, classifier)]
    distiller = build(teacher, student, classifier)
    optimizer = torch.optim.SGD(distiller.trainable_parameters(), lr=0.1)
    first = distiller(images, LABELS).total
    first.backward()
    optimizer.step()
    assert distiller(images, LABELS).total < first
    after = [m.state_dict() for m in (student, teacher, classifier)]
    same = [
        all(torch.equal(a[name], b[name]) for name in a) for a, b in zip(before, after, strict=True)
    ]
    assert same == [False, True, True]


def test_any_module_can_be_the_classifier(teacher, student, images):
    class Nearest(nn.Module):
        def __init__(self):
            super().__init__()
            self.centres = nn.Parameter(torch.randn(5, 36))

        def forward(self, features):
            return -torch.cdist(features.cls, self.centres)

    assert build(teacher, student, Nearest())(images, LABELS).kl > 0


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_the_published_head_is_read_and_gives_its_logits(tmp_path, suffix):
    tensors = {"weight": torch.randn(7, 72), "bias": torch.randn(7)}
    path = tmp_path / f"dinov2_vitb14_linear_head{suffix}"
    torch.save(tensors, path) if suffix == ".pth" else save_file(tensors, path)
    head = load_linear_head(path, 36)
    features = Features(torch.randn(3, 36), torch.randn(3, 4, 36), (2, 2))
    tokens = torch.cat([features.cls, features.patches.mean(1)], 1)
    torch.testing.assert_close(head(features), tokens @ tensors["weight"].T + tensors["bias"])
    assert not any(p.requires_grad for p in head.parameters())


@pytest.mark.parametrize(
    "tensors",
    [
        {"weight": torch.zeros(7, 180), "bias": torch.zeros(7)},  # four layers
        {"weight": torch.zeros(7, 72)},
        {"weight": torch.zeros(7, 72), "bias": torch.zeros(7), "more": torch.zeros(1)},
        {"weight": torch.zeros(7, 72), "bias": torch.zeros(())},
        {},
    ],
)
def test_a_file_that_is_not_the_head_is_an_error_that_says_what_it_holds(tmp_path, tensors):
    torch.save(tensors, tmp_path / "head.pth")
    with pytest.raises(ValueError, match=r"linear head: head\.pth does not fit.*\[classes, 72\]"):
        load_linear_head(tmp_path / "head.pth", 36)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kl": 0, "ce": 0}, "not all 0. Got kl=0, ce=0"),
        ({"kl": -1.0}, "kl is out of range. Got -1"),
        ({"temperature": 0}, "temperature is out of range. Got 0"),
        ({"kl": 0, "hard": True}, "would be ignored"),
        ({"hard": True, "temperature": 2.0}, "the temperature would be ignored. Got temperature=2"),
    ],
)
def test_settings_that_mean_nothing_are_errors(teacher, student, classifier, options, message):
    with pytest.raises(ValueError, match=message):
        build(teacher, student, classifier, **options)


def test_a_classifier_that_does_not_fit_is_an_error_at_once(teacher, student):
    with pytest.raises(ShapeError, match=r"Got \(1, 7\) for one image; expected \(1, 5\)"):
        build(teacher, student, LinearHead(36, 7))
    with pytest.raises(ShapeError, match=r"cannot read the teacher's features.*width 36"):
        build(teacher, student, LinearHead(20, 5))


def test_each_model_gets_images_of_its_own_size(teacher, classifier):
    student = proteus.Student(vit(24, size=64), image_size=64)
    distiller = build(teacher, student, classifier)
    assert distiller(torch.rand(2, 3, 64, 64), torch.tensor([0, 1])).total > 0


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (None, "needs labels"),
        (LABELS.int(), "torch.int32"),
        (LABELS[:2], r"\(2,\)"),
        (torch.tensor([0, 1, 2, 5]), "Got 0 to 5; expected 0 to 4"),
        (torch.tensor([0, 1, 2, -100]), "Got -100 to 2"),
    ],
)
def test_labels_that_do_not_fit_are_errors(teacher, student, images, labels, message):
    distiller = build(teacher, student, LinearHead(36, 5))
    distiller(images, LABELS)
    with pytest.raises(ValueError, match=message):
        distiller(images, labels)
