"""Learned fusion: neutral at zero, blind to order and padding, its cavities by brute force, gradients, training."""

import lightning
import pytest
import torch
from torch.distributions import MultivariateNormal

from sensing.data.drops import DropDataModule
from sensing.errors import CheckpointError, ConfigError, DomainError
from sensing.evaluation.fusion import fusion
from sensing.fusion.domain import box, hexagon
from sensing.fusion.learned import LearnedFusion
from sensing.fusion.measurements import MODALITIES, StationMeasurements
from sensing.fusion.methods import Pooling, fuse
from sensing.fusion.modes import FusionFlag
from sensing.fusion.network import MemberNetwork
from sensing.fusion.solve import solve_position
from sensing.fusion.start import start_position
from sensing.fusion.weights import FusionWeights
from sensing.learning import FusionLearner, Learner
from sensing.losses import FusionLoss
from sensing.runs import Builder
from sensing.simulation.drops import DropSampler

DOUBLE = torch.float64
STATIONS = [[60.0, 0.0, 10.0], [-30.0, 52.0, 10.0], [-30.0, -52.0, 12.0], [45.0, 60.0, 9.0], [-60.0, 5.0, 8.0]]
DOMAIN = hexagon(55.0, 1.5, 1.0)


def sampler(stations=3, **law):
    return DropSampler(STATIONS[:stations], DOMAIN, **({"bias": "uniform", "bias_scale_m": 8.0} | law))


def drops(count=6, stations=3, **law):
    return sampler(stations, **law).sample(0, "test", range(count))


def exact(stations, count=20):
    """Measurements without noise or bias."""
    return drops(count, stations, bias="none", range_std_m=1e-9, angle_std_deg=1e-7)


def scrambled(**settings):
    """A network all of whose parameters are random."""
    torch.manual_seed(3)
    net = LearnedFusion(**({"layers": 2, "hidden": 6} | settings))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, dtype=DOUBLE))
    return net


def without(measured, station, *names):
    """The measurements, some of a station missing."""
    changed = {}
    for name in names:
        std = getattr(measured, name).clone()
        std[..., station] = torch.inf
        changed[name] = std
    return measured._replace(**changed)


@pytest.mark.parametrize("stations", [2, 3, 5])
@pytest.mark.parametrize("modality", MODALITIES)
def test_untrained_it_is_equal_weights_to_the_last_bit(modality, stations):
    measured = drops(20, stations=stations).measured.only(modality)
    net = LearnedFusion(layers=2, steps=3)
    fused = net(measured, DOMAIN)
    equal = measured.members.double().unflatten(-1, (2, stations))
    wanted = solve_position(start_position(measured, DOMAIN), measured, equal, None, DOMAIN.unknown, 9)
    inside = DOMAIN.contains(wanted.position) & (fused.flags & FusionFlag.NOT_CONVERGED == 0)
    assert inside.sum() >= 10
    assert torch.equal(fused.position[inside], wanted.position[inside])
    assert torch.equal(fused.flags & FusionFlag.OUTSIDE == 0, DOMAIN.contains(wanted.position))
    assert torch.equal(fused.weight, equal)
    assert (fused.bias_m == 0).all()
    there = solve_position(fused.position, measured, equal, None, DOMAIN.unknown, 1).information
    product = fused.covariance[inside] @ there[inside]
    assert torch.allclose(product, torch.eye(2, dtype=DOUBLE).expand_as(product), atol=1e-9)


@pytest.mark.parametrize("modality", MODALITIES)
def test_order_of_stations_does_not_matter(modality):
    measured, order = drops(stations=5).measured.only(modality), [3, 0, 4, 2, 1]
    net = scrambled()
    one, two = net(measured, DOMAIN), net(measured.stations(order), DOMAIN)
    assert (one.weight.flatten(0, 1).std(0) > 1e-3).any()
    assert torch.allclose(two.position, one.position, rtol=0, atol=1e-6)
    assert torch.allclose(two.weight, one.weight[..., order], rtol=1e-6)
    assert torch.allclose(two.bias_m, one.bias_m[..., order], rtol=0, atol=1e-6)


def test_an_absent_station_is_no_station():
    """Padding of batches with different numbers of stations."""
    measured, net = drops(stations=4).measured, scrambled()
    padded = without(measured, 2, "range_std", "angle_std")
    one, two = net(measured.stations([0, 1, 3]), DOMAIN), net(padded, DOMAIN)
    assert torch.allclose(one.position, two.position, rtol=0, atol=1e-8)
    assert torch.allclose(one.weight, two.weight[..., [0, 1, 3]], rtol=1e-8)
    assert (two.weight[..., 2] == 0).all()
    assert (two.bias_m[..., 2] == 0).all()


def test_a_missing_range_or_direction_has_no_weight():
    measured = without(without(drops().measured, 0, "range_std"), 1, "angle_std")
    fused = scrambled()(measured, DOMAIN)
    assert torch.equal(fused.weight > 0, measured.precision > 0)
    assert (fused.bias_m[:, 0] == 0).all()
    assert (fused.bias_m[:, 1:] != 0).all()


def test_weights_alone_correct_no_bias():
    fused = scrambled(correct_bias=False)(drops().measured, DOMAIN)
    assert (fused.bias_m == 0).all()
    assert (fused.weight[:, 0] != 1).all()


@pytest.mark.parametrize(("modality", "stations"), [("toa", 2), ("aoa", 1)])
def test_without_redundancy_nothing_is_corrected(modality, stations):
    """As many numbers as unknowns: whatever the network, weights are equal and ranges stay as they are."""
    measured = drops(40, stations=stations).measured.only(modality)
    net, untrained = scrambled(), LearnedFusion(layers=2)
    assert torch.equal(net(measured, DOMAIN).position, untrained(measured, DOMAIN).position)
    assert (net(measured, DOMAIN).bias_m == 0).all()
    more = drops(40, stations=stations + 1).measured.only(modality)
    assert not torch.equal(net(more, DOMAIN).position, untrained(more, DOMAIN).position)


def test_no_drop_depends_on_its_batch_mates():
    measured, net = drops(8, stations=4).measured, scrambled()
    whole = net(measured, DOMAIN)
    alone = net(StationMeasurements(measured.bs_position, *(field[5:6] for field in measured[1:])), DOMAIN)
    assert torch.allclose(alone.position[0], whole.position[5], rtol=0, atol=1e-9)


@pytest.mark.parametrize("modality", ["toa", "hybrid"])
def test_cavity_against_the_problem_without_the_range(modality):
    """One Gauss-Newton step without range i, and the Jacobian of the other residuals by automatic differentiation."""
    measured = drops(3, stations=4, angle_std_deg=3.0).measured.only(modality)
    position = drops(3, stations=4).position + 2.0
    position[:, 2] = 1.5
    weight = torch.rand(3, 2, 4, dtype=DOUBLE, generator=torch.Generator().manual_seed(0)) + 0.5
    weight, bias = weight * (measured.precision > 0), torch.full((3, 4), 0.7, dtype=DOUBLE)
    _, _, residual, spread = LearnedFusion().features(position, measured, weight, bias, [0, 1])
    for i in range(4):
        rest = without(measured, i, "range_std")
        there = solve_position(position, rest, weight, bias, [0, 1], 1).position
        gone = torch.linalg.vector_norm(there - measured.bs_position[i], dim=-1)
        assert torch.allclose(residual[:, i], measured.range_m[:, i] - gone, rtol=0, atol=1e-3)
        for drop in range(3):

            def residuals(xy, rest=rest, drop=drop):
                offset = torch.cat([xy, position[drop, 2:]]) - rest.bs_position
                distance = offset.norm(dim=-1)
                strength = (weight[drop] * rest.precision[drop]).sqrt()
                return torch.cat([strength[0] * distance, (strength[1, :, None] * offset / distance[:, None]).ravel()])

            jacobian = torch.autograd.functional.jacobian(residuals, position[drop, :2])
            unit = ((position[drop] - rest.bs_position[i]) / (position[drop] - rest.bs_position[i]).norm())[:2]
            variance = unit @ torch.linalg.inv(jacobian.T @ jacobian) @ unit
            assert float(spread[drop, i]) == pytest.approx(float((variance + 1.0).sqrt()), rel=1e-3)


def test_gradients_against_finite_differences():
    torch.manual_seed(0)
    net, task = scrambled(hidden=3, layers=2), drops(2)
    parameters = dict(net.named_parameters())

    def position(ranges, *values):
        measured = task.measured._replace(range_m=ranges)
        given = dict(zip(parameters, values, strict=True))
        return torch.func.functional_call(net, given, (measured, DOMAIN)).position[:, :2]

    values = [value.detach().clone().requires_grad_() for value in parameters.values()]
    ranges = task.measured.range_m.clone().requires_grad_()
    assert torch.autograd.gradcheck(position, (ranges, *values), eps=1e-5, atol=1e-4, rtol=1e-3, fast_mode=True)


@pytest.mark.parametrize("modality", MODALITIES)
@pytest.mark.parametrize("stations", [2, 3, 5])
def test_start_is_exact_without_noise(modality, stations):
    task = exact(stations)
    error = (start_position(task.measured.only(modality), DOMAIN) - task.position).norm(dim=-1)
    if modality == "toa" and stations == 2:  # one of two crossings
        one, two = (torch.tensor(each[:2], dtype=DOUBLE) for each in STATIONS[:2])
        across = torch.tensor([-(two - one)[1], (two - one)[0]], dtype=DOUBLE) / (two - one).norm()
        apart = 2 * ((task.position[:, :2] - one) @ across).abs()
        assert torch.minimum(error, (error - apart).abs()).max() < 1e-4
        assert (error < 1e-4).any()
    else:
        assert (error < 1e-4).all()


def test_where_the_cavity_is_open_nothing_is_corrected():
    """With two ranges and nothing else, each is all that is known along its direction."""
    measured = drops(stations=2).measured.only("toa")
    fused, plain = (net(measured, DOMAIN) for net in (scrambled(), LearnedFusion(layers=2)))
    assert (fused.bias_m.abs() < 1.0).all()
    assert torch.allclose(fused.position, plain.position, rtol=0, atol=3.0)


def test_doubtful_results_are_flagged():
    task = exact(3)
    plain = task.measured._replace(range_std=torch.ones(20, 3, dtype=DOUBLE))
    net = LearnedFusion()
    assert (net(plain, DOMAIN).flags == 0).all()
    lone = net(plain.stations([0]).only("toa"), DOMAIN)
    assert (lone.flags & FusionFlag.OPEN > 0).all()
    assert (lone.flags & FusionFlag.LONE_MEMBER > 0).all()
    assert torch.isinf(lone.covariance.diagonal(dim1=-2, dim2=-1)).all()
    assert torch.isfinite(lone.position).all()
    torn = plain._replace(range_m=plain.range_m + torch.tensor([40.0, 40.0, 40.0], dtype=DOUBLE))
    assert (net(torn.only("toa"), DOMAIN).flags & FusionFlag.CONTRADICTORY > 0).any()
    with pytest.raises(DomainError, match="range_std must be positive"):
        net(plain._replace(range_std=torch.zeros(20, 3, dtype=DOUBLE)), DOMAIN)


def test_in_space_with_all_coordinates_unknown():
    law = DropSampler(STATIONS, box([-30, -30, 0], [30, 30, 6], 2.0), range_std_m=1e-6, angle_std_deg=1e-4)
    task = law.sample(0, "test", range(5))
    fused = LearnedFusion()(task.measured, law.domain)
    assert fused.covariance.shape == (5, 3, 3)
    assert torch.allclose(fused.position, task.position, rtol=0, atol=1e-4)


def test_loss_is_error_and_surprise():
    """The second part is the negative log-density of the position, up to a constant."""
    generator = torch.Generator().manual_seed(0)
    root = torch.randn(5, 2, 2, dtype=DOUBLE, generator=generator)
    information = root @ root.mT + torch.eye(2, dtype=DOUBLE)
    true, position = (torch.randn(5, 3, dtype=DOUBLE, generator=generator) for _ in range(2))
    density = MultivariateNormal(position[:, [0, 2]], precision_matrix=information)
    wanted = -density.log_prob(true[:, [0, 2]]) - torch.log(torch.tensor(2 * torch.pi))
    got = [FusionLoss(2.0, 2.0, a)([position], [information], true, [0, 2]) for a in (0.0, 1.0)]
    assert torch.allclose(got[1] - got[0], wanted)
    assert torch.allclose(got[0], (position - true)[:, [0, 2]].square().sum(-1) / 4)
    twice = FusionLoss(2.0, 2.0, 0.0, early=0.25)([position] * 2, [information] * 2, true, [0, 2])
    assert torch.allclose(twice, 1.25 * got[0])
    with pytest.raises(ConfigError, match=r"loss\.power must be > 0"):
        FusionLoss(power=0.0)


def test_one_network_class_behind_all_fusion_weights():
    net = LearnedFusion()
    paths = FusionWeights(messages=True)
    assert isinstance(paths, MemberNetwork)
    assert all(isinstance(site, MemberNetwork) for site in net.sites)
    assert {name for name, _ in paths.named_parameters()} == {name for name, _ in net.sites[0].named_parameters()}
    assert all((site.outer.weight == 0).all() and (site.outer.bias == 0).all() for site in net.sites)


def test_blocks_are_seeded_and_fresh():
    data = DropDataModule(sampler(), seed=4, batch_size=8, batches_per_epoch=3, modalities=["toa", "hybrid"])
    one, two = (list(data.train_dataloader()) for _ in range(2))
    assert [task.number for task in one] == [0, 1, 2]
    assert all(torch.equal(a.drops.position, b.drops.position) for a, b in zip(one, two, strict=True))
    assert not torch.equal(one[0].drops.position, one[1].drops.position)
    assert not torch.equal(one[0].drops.position, next(iter(data.val_dataloader())).drops.position)
    assert torch.isinf(one[0].drops.measured.angle_std).all()
    assert torch.isfinite(one[1].drops.measured.angle_std).all()
    some = DropDataModule(sampler(5), batch_size=16, modalities=["toa", "hybrid"], stations=[2, 5, 3]).datasets["train"]
    tasks = [some[index] for index in range(12)]
    assert [task.drops.measured.range_m.shape for task in tasks[:4]] == [(16, 2), (16, 5), (16, 3), (16, 2)]
    assert torch.equal(tasks[1].drops.measured.range_m, sampler(5).block(0, "train", 1, 16).measured.range_m)
    pairs = {tuple(task.drops.measured.bs_position[:, 0].tolist()) for task in tasks[::3]}
    assert len(pairs) > 1
    assert torch.equal(some[0].drops.measured.bs_position, tasks[0].drops.measured.bs_position)
    with pytest.raises(ConfigError, match=r"data\.stations must be numbers of stations from 1 to 3, got \[4\]"):
        DropDataModule(sampler(), stations=[4])
    with pytest.raises(ConfigError, match=r"data\.modalities must be out of"):
        DropDataModule(sampler(), modalities=["tdoa"])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A few steps of a small network, and its checkpoint."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("fusion")
    estimator = {"_target_": "sensing.fusion.learned.LearnedFusion", "layers": 1, "hidden": 8, "steps": 2}
    learner = FusionLearner(estimator, {"power": 1.0}, {"_target_": "torch.optim.Adam", "lr": 0.02})
    data = DropDataModule(sampler(), batch_size=128, batches_per_epoch=40, val_batches=2, modalities=["hybrid"])
    trainer = lightning.Trainer(
        max_epochs=1,
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        gradient_clip_val=3.0,
    )
    trainer.fit(learner, data)
    trainer.save_checkpoint(folder / "fusion.ckpt")
    return learner, folder / "fusion.ckpt", trainer


def test_training_beats_equal_weights(trained):
    task = drops(300)
    with torch.no_grad():
        error, equal = (
            (net(task.measured, DOMAIN).position - task.position).norm(dim=-1).quantile(0.9)
            for net in (trained[0].fusion, LearnedFusion())
        )
    assert error < 0.75 * equal
    assert trained[2].callback_metrics["val/error_m_90"] < 0.75 * equal


def test_among_the_methods_of_the_fusion_task(trained):
    measured, generator = drops(4).measured, torch.Generator().manual_seed(0)
    pooling = Pooling(DOMAIN, 50, networks={"learned": trained[0].fusion})
    fused = fuse(["equal", "learned"], measured, pooling, generator)["learned"]
    assert torch.equal(fused.position, trained[0].fusion(measured, DOMAIN).position)
    assert fused.weight.shape == (4, 6)
    with pytest.raises(ConfigError, match="learned_weights needs its network"):
        fuse(["learned_weights"], measured, pooling, generator)
    for method, path in (("learned", None), ("learned_weights", str(trained[1]))):
        with pytest.raises(ConfigError, match=rf"task\.checkpoints\.{method} must be"):
            fusion(Builder(None), "unused", sampler(), [method], checkpoints={method: path})


def test_checkpoint_gives_identical_positions(trained):
    learner, path, _ = trained
    loaded = FusionLearner.load(path)
    measured = drops().measured
    assert torch.equal(loaded.fusion(measured, DOMAIN).position, learner.fusion(measured, DOMAIN).position)
    with pytest.raises(CheckpointError, match="must be of Learner, got one of FusionLearner"):
        Learner.load(path)
