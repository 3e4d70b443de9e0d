import copy
import shutil

import pytest
import torch
from oracles import mse, relations

from proteus import Distiller, Features, ProteusLoss
from proteus.evaluation.agreement import compare_projected
from proteus.hadamard import even_rotation, hadamard
from proteus.target_maps import AnglePreserving, PhiS, Standardized
from proteus.world import leave

MAPPED = ["standardized", "phi_s", "angle"]


def features(dim, batch=3, grid=(2, 3)):
    count = grid[0] * grid[1]
    return Features(torch.randn(batch, dim) * 3 + 1, torch.randn(batch, count, dim) - 2, grid)


def loss_of(targets, student_dim=4, teacher_dim=8, **options):
    head = "identity" if targets == "angle" else options.pop("head", "ln_linear")
    return ProteusLoss(student_dim, teacher_dim, patch=0, head=head, targets=targets, **options)


@pytest.mark.parametrize("sizes", [[16], [1, 3, 12], [8, 8]])
def test_statistics_are_those_of_all_tokens_however_they_came(sizes):
    tokens = torch.randn(16, 5) * torch.arange(1, 6) + 100
    scale = Standardized(5)
    for part in tokens.split(sizes):
        scale(part)
    assert scale.count == 16
    torch.testing.assert_close(scale.mean, tokens.mean(0))
    torch.testing.assert_close(scale.variance, tokens.var(0, correction=0), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("kind", [Standardized, PhiS])
def test_nothing_is_counted_in_eval_and_before_training_nothing_changes(kind):
    tokens, scale = torch.randn(9, 4) + 3, kind(4).eval()
    torch.testing.assert_close(scale(tokens), tokens)
    scale.train()(tokens)
    before = copy.deepcopy(scale.state_dict())
    scale.eval()(tokens * 5)
    assert all(torch.equal(value, before[name]) for name, value in scale.state_dict().items())


def test_a_dimension_that_never_moves_gives_zero():
    tokens = torch.cat([torch.randn(7, 2), torch.full((7, 1), 0.3)], 1)
    found = Standardized(3)(tokens)
    assert found[:, 2].abs().max() < 1e-3
    torch.testing.assert_close(found[:, :2].var(0, correction=0), torch.ones(2), rtol=1e-4, atol=0)


def test_the_loss_compares_with_standardized_tokens():
    student, teacher = features(4), features(8)
    loss = loss_of("standardized")
    found = loss(student, teacher)
    cls = (teacher.cls - teacher.cls.mean(0)) / teacher.cls.std(0, correction=0)
    rows = teacher.patches.flatten(0, 1)
    patches = (teacher.patches - rows.mean(0)) / rows.std(0, correction=0)
    ours = loss.token_head(student.cls)
    torch.testing.assert_close(found.token, mse(ours, cls), rtol=1e-4, atol=1e-5)
    both = torch.cat([ours[:, None], loss.feature_head(student.patches)], 1)
    expected = mse(both, torch.cat([cls[:, None], patches], 1))
    torch.testing.assert_close(found.feature, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("width", [8, 12, 36])
def test_phi_s_turns_until_dimensions_vary_alike_and_distorts_nothing(width):
    tokens = torch.randn(200, width) @ torch.randn(width, width) * torch.linspace(0.1, 9, width) + 4
    turn = PhiS(width)
    turned = turn(tokens)
    torch.testing.assert_close(turned.mean(0), torch.zeros(width), rtol=0, atol=1e-4)
    variances = turned.var(0, correction=0)
    torch.testing.assert_close(variances, torch.ones(width), rtol=1e-3, atol=0)
    scale = tokens.var(0, correction=0).mean().sqrt()
    distances = torch.pdist(turned), torch.pdist(tokens) / scale
    torch.testing.assert_close(*distances, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(turn.eval().restore(turned), tokens, rtol=1e-4, atol=1e-3)


def test_phi_s_is_a_hadamard_matrix_times_the_principal_axes():
    tokens = torch.randn(50, 4) @ torch.randn(4, 4)
    turn = PhiS(4)
    turn(tokens)
    _, axes = torch.linalg.eigh(torch.cov(tokens.T, correction=0))
    signs = torch.round(turn.rotation @ axes * 2)
    torch.testing.assert_close(turn.rotation @ axes, signs / 2, rtol=0, atol=1e-3)


def test_without_a_hadamard_matrix_the_rotation_is_still_one():
    assert hadamard(6) is None
    turned = PhiS(6)(torch.randn(100, 6) * torch.arange(1, 7))
    torch.testing.assert_close(turned.var(0, correction=0).mean(), torch.tensor(1.0))
    matrix = even_rotation(6)
    torch.testing.assert_close(matrix @ matrix.T, torch.eye(6, dtype=torch.float64))


def test_hadamard_matrices_are_ones():
    for order in (n for n in range(1, 200) if n < 3 or n % 4 == 0):
        matrix = hadamard(order)
        if matrix is None:
            assert order in (52, 92, 100, 116, 156, 172, 184, 188)
            continue
        assert matrix.abs().eq(1).all()
        assert torch.equal(matrix @ matrix.T, order * torch.eye(order, dtype=torch.float64))


def test_the_rotation_stays_and_is_in_the_state():
    turn = PhiS(4)
    turn(torch.randn(20, 4))
    rotation = turn.rotation.clone()
    turn(torch.randn(20, 4) * torch.arange(1, 5))
    assert torch.equal(turn.rotation, rotation)
    other = PhiS(4)
    other.load_state_dict(turn.state_dict())
    tokens = torch.randn(20, 4)
    assert torch.equal(other(tokens), turn(tokens))


def test_the_angle_map_learns_from_cosines_and_the_student_does_not():
    teacher = features(8, batch=5)
    student = Features(*(x.requires_grad_(True) for x in features(4, batch=5)[:2]), (2, 3))
    loss = loss_of("angle", distance="cosine")
    losses = loss(student, teacher)
    cls, patches = loss.maps.cls(teacher.cls), loss.maps.patches(teacher.patches)
    cost = relations(cls[None], teacher.cls[None]) + relations(patches, teacher.patches)
    torch.testing.assert_close(losses.total, losses.token + losses.feature + cost)
    losses.total.backward()
    expected = torch.autograd.grad(cost, list(loss.maps.parameters()))
    for parameter, gradient in zip(loss.maps.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-4, atol=1e-6)
    assert student.cls.grad.abs().sum() > 0


def test_the_angle_map_gets_better():
    tokens = torch.randn(64, 8) * torch.tensor([3.0] * 4 + [0.3] * 4)
    angles = AnglePreserving(8, 4)
    optimizer = torch.optim.Adam(angles.parameters(), lr=0.05)
    costs = []
    for _ in range(40):
        cost = angles.cost(tokens, angles(tokens))
        cost.backward()
        optimizer.step()
        optimizer.zero_grad()
        costs.append(cost.item())
    assert costs[-1] < costs[0] / 3


@pytest.mark.parametrize("targets", ["raw", *MAPPED])
def test_a_student_that_matches_the_target_agrees_fully(targets):
    teacher = features(8)
    width = 4 if targets == "angle" else 8
    loss = ProteusLoss(width, 8, patch=0, head="identity", targets=targets)
    matched = teacher if loss.maps is None else loss.maps(teacher)[0]
    losses = loss.eval()(matched, teacher)
    assert losses.feature < 1e-10
    found = compare_projected(loss, matched, teacher)
    assert found["cls_cosine"] == pytest.approx(1, abs=1e-6)
    assert found["patch_cosine"] == pytest.approx(1, abs=1e-6)
    shown = loss.project(matched), loss.target(teacher)
    torch.testing.assert_close(shown[0].patches, shown[1].patches, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(shown[0].cls, shown[1].cls, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("targets", ["phi_s", "angle"])
def test_a_run_goes_on_as_if_it_had_not_stopped(targets, teacher, student, tmp_path):
    batches = [torch.rand(4, 3, 32, 32) for _ in range(2)]

    def run(weights, **options):
        torch.manual_seed(0)
        head = "identity" if targets == "angle" else "ln_linear"
        loss = ProteusLoss(24, 36, head=head, targets=targets, token_distance="queue", queue_size=6)
        distiller = Distiller(teacher, copy.deepcopy(weights), loss)
        rows = distiller.fit(
            batches, steps=2, save_every=1, out=tmp_path, device="cpu", progress=False, **options
        )
        return rows[-1], loss.state_dict()

    row, state = run(student)
    shutil.rmtree(tmp_path / "checkpoint" / "step-00000002")
    again, resumed = run(student, resume=True)
    assert again == row
    assert resumed.keys() == state.keys()
    for name, value in state.items():
        assert torch.equal(resumed[name], value), name


def in_one_of_two_processes(rank, folder):
    store = torch.distributed.FileStore(str(folder / "store"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    found = {kind: after_two_steps(kind, rank, 2) for kind in ("standardized", "phi_s")}
    torch.save(found, folder / f"{rank}.pt")
    leave()


def after_two_steps(targets, rank, size):
    """The state of a loss that saw this process's share of two batches of tokens."""
    loss = ProteusLoss(8, 8, patch=0, targets=targets, token_distance="queue", queue_size=10)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        tokens = torch.randn(6, 5, 8, generator=generator)[rank * 6 // size :][: 6 // size] + 2
        given = Features(tokens[:, 0], tokens[:, 1:] * torch.arange(1, 9), (2, 2))
        loss(given, given)
    return dict(loss.named_buffers())


@pytest.mark.slow
def test_two_processes_keep_the_state_of_one(tmp_path):
    torch.multiprocessing.spawn(in_one_of_two_processes, (tmp_path,), nprocs=2)
    ranks = [torch.load(tmp_path / f"{rank}.pt") for rank in (0, 1)]
    for kind in ("standardized", "phi_s"):
        for name, value in after_two_steps(kind, 0, 1).items():
            assert torch.equal(ranks[0][kind][name], ranks[1][kind][name])
            if kind == "standardized":  # the signs of the axes of the other are free
                torch.testing.assert_close(ranks[0][kind][name], value, rtol=1e-4, atol=1e-5)


def test_every_parameter_gets_a_gradient(teacher, student, images):
    loss = ProteusLoss(24, 36, head="identity", targets="angle", token_distance="queue")
    Distiller(teacher, student, loss)(images).total.backward()
    assert [name for name, p in loss.named_parameters() if p.grad is None] == []
    assert sorted(name for name, _ in loss.named_parameters()) == [
        "maps.cls.linear.weight",
        "maps.patches.linear.weight",
    ]


def test_maps_exist_where_they_are_used():
    tokens = ProteusLoss(4, 8, feature=0, patch=0, targets="phi_s")
    assert (tokens.maps.cls is None, tokens.maps.patches is None) == (False, True)
    hidden = ProteusLoss((4, 5), (8, 12), token=0, feature=0, targets="phi_s")
    assert (hidden.maps.cls is None, hidden.maps.patches.rotation.shape) == (True, (12, 12))


def test_settings_that_do_not_fit_are_named():
    with pytest.raises(ValueError, match=r"unknown targets.*whitened.*phi_s"):
        ProteusLoss(4, 8, targets="whitened")
    with pytest.raises(ValueError, match="head='ln_linear'; expected head='identity'"):
        ProteusLoss(4, 8, targets="angle")
