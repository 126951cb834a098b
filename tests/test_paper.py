"""The paper's coarse stage and estimator: right on scenes it can solve, honest on all others."""

import pytest
import torch

from sensing.coarse.normal_equations import inverse_information
from sensing.coarse.paper import PaperLocalizer
from sensing.containers import Flag, PathEstimates, map_tensors
from sensing.errors import ConfigError
from sensing.inference.unrolled import Unrolled
from sensing.paper_estimator import PaperEstimator
from tests.conftest import build
from tests.reference.oracle import C, detect


@pytest.fixture(scope="module")
def case():
    """Every shared scatterer seen by all stations: what the paper's association can do."""
    setup = build(8, visibility=1.0)
    example = setup.simulator.examples("test", range(12), snr_db=20.0)
    return setup, example, detect(example, setup.deployment)


def given(estimate):
    """Name and value of what an estimate holds."""
    return [(name, field) for name, field in estimate._asdict().items() if field is not None]


def check_finite(found):
    for part in (found.geometry, found.solution):
        for name, field in part._asdict().items():
            assert torch.isfinite(field).all(), name
    assert torch.isfinite(found.cost_per_dof).all()
    assert torch.isfinite(inverse_information(found.solution.information)).all()


def test_finds_the_user_where_all_is_shared(case):
    setup, example, oracle = case
    found = PaperLocalizer()(oracle.paths, setup.deployment)
    check_finite(found)
    error = (found.geometry.ue_position - example.scene.ue_position).norm(dim=-1)
    assert error.median() < 0.5
    good = error < 0.5
    offset = (found.geometry.offset_m - C * example.scene.clock_offset).abs().amax(-1)
    assert (offset[good] < 1.0).all()
    assert (found.flags & Flag.TOO_FEW_SHARED == 0).all()


def test_exact_paths_give_every_scatterer_and_nothing_else(case):
    setup, example, _ = case
    oracle = detect(example, setup.deployment, noise=0.0)
    found = PaperLocalizer(threshold_m=1e-5, rounds=3000)(oracle.paths, setup.deployment)
    near = (found.geometry.ue_position - example.scene.ue_position).norm(dim=-1) < 0.02
    assert near.double().mean() > 0.8
    detected = torch.zeros_like(example.scene.visible)
    scene, station, path = oracle.paths.mask.nonzero(as_tuple=True)
    detected[scene, station, oracle.point[scene, station, path]] = True
    for b in near.nonzero().flatten().tolist():
        nodes = found.geometry.node_position[b][found.geometry.node_mask[b]]
        truth = example.scene.scatterer_position[b][detected[b].any(0)]
        assert len(nodes) == len(truth)
        assert torch.cdist(nodes, truth).amin(1).max() < 0.1


def test_every_path_is_in_at_most_one_node(case):
    setup, _, oracle = case
    found = PaperLocalizer(threshold_m=0.5, min_views=2)(oracle.paths, setup.deployment)
    assert torch.equal(found.geometry.member, (found.path >= 0).mT)
    for b in range(len(found.path)):
        for q in range(4):
            used = found.path[b, :, q]
            used = used[used >= 0].tolist()
            assert len(used) == len(set(used))
            assert oracle.paths.mask[b, q, used].all()
    views = found.geometry.member.sum(1)
    assert (views > 0).eq(found.geometry.node_mask).all()
    shared = PaperLocalizer(threshold_m=0.5, min_views=2, private=False)(oracle.paths, setup.deployment)
    assert (shared.geometry.member.sum(1)[shared.geometry.node_mask] >= 2).all()


def test_no_scene_depends_on_the_others(case):
    setup, _, oracle = case
    whole = PaperLocalizer()(oracle.paths, setup.deployment)
    for b in (0, 5):
        one = PaperLocalizer()(map_tensors(oracle.paths, lambda x, b=b: x[b : b + 1]), setup.deployment)
        torch.testing.assert_close(one.geometry.ue_position[0], whole.geometry.ue_position[b], rtol=0, atol=1e-6)
        assert one.flags[0] == whole.flags[b]


def test_shared_scatterers_only_where_all_stations_agree(case):
    """With two stations `min_views=3` means both."""
    setup, _, oracle = case
    two = setup.deployment._replace(
        bs_position=setup.deployment.bs_position[:2], bs_rotation=setup.deployment.bs_rotation[:2]
    )
    paths = PathEstimates(*(field[:, :2] for field in oracle.paths))
    found = PaperLocalizer(min_views=3)(paths, two)
    assert ((found.path >= 0).all(-1).sum(-1) > 0).all()
    check_finite(found)


def test_unsolvable_scenes_are_flagged(case):
    setup, _, oracle = case
    nothing = oracle.paths._replace(mask=oracle.paths.mask & False)
    found = PaperLocalizer()(nothing, setup.deployment)
    check_finite(found)
    assert (found.flags & Flag.NO_PATHS > 0).all()
    assert not found.geometry.node_mask.any()
    single = oracle.paths.mask.clone()
    single[:, 1:] = False  # all paths in one station
    found = PaperLocalizer()(oracle.paths._replace(mask=single), setup.deployment)
    check_finite(found)
    assert (found.flags & Flag.TOO_FEW_SHARED > 0).all()
    no_slot = PathEstimates(*(field[:, :, :0] for field in oracle.paths))
    found = PaperLocalizer()(no_slot, setup.deployment)
    check_finite(found)
    assert (found.flags & Flag.NO_PATHS > 0).all()


def test_known_clocks_are_used(case):
    """With synchronous stations the ranges are absolute, which beats estimating the offsets."""
    setup, example, _ = case
    scene = example.scene._replace(clock_offset=torch.zeros_like(example.scene.clock_offset))
    oracle = detect(example._replace(scene=scene), setup.deployment)
    errors = []
    for std in (0.0, 1e-6):
        known = setup.deployment._replace(clock_offset_std=torch.tensor(std, dtype=torch.float64))
        found = PaperLocalizer()(oracle.paths, known)
        errors.append((found.geometry.ue_position - scene.ue_position).norm(dim=-1).median())
        assert (found.geometry.offset_m.abs().max() < 1e-3) == (std == 0.0)
    assert errors[0] < 0.8 * errors[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"threshold_m": 0.0}, "threshold_m must be positive, got 0.0"),
        ({"range_std_m": float("nan")}, "range_std_m must be positive, got nan"),
        ({"min_views": 1}, "min_views >= 2"),
    ],
)
def test_bad_settings_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        PaperLocalizer(**arguments)


@pytest.mark.parametrize(("neighbours", "merge"), [(0, 0.0), (6, 0.05)])
def test_estimator_improves_the_channel_and_keeps_its_scenes_apart(case, neighbours, merge):
    setup, example, oracle = case
    pick = slice(0, 2)
    observation = map_tensors(example.observation, lambda x: x[pick])
    paths = map_tensors(oracle.paths, lambda x: x[pick])
    unrolled = Unrolled(2, kind="gradient", merge=merge, activity=0.5 / (neighbours + 1))
    estimator = PaperEstimator(unrolled=unrolled, neighbours=neighbours, spacing_m=0.1)
    with torch.no_grad():
        both = estimator(observation, setup.deployment, paths)
        one = estimator(
            map_tensors(observation, lambda x: x[1:]), setup.deployment, map_tensors(paths, lambda x: x[1:])
        )
    for name, field in given(both):
        assert torch.isfinite(torch.view_as_real(field) if field.is_complex() else field).all(), name
    torch.testing.assert_close(both.ue_position[1], one.ue_position[0], rtol=0, atol=1e-5)
    clean = example.channel[pick]
    nmse = (both.channel - clean).abs().square().sum((1, 2, 3)) / clean.abs().square().sum((1, 2, 3))
    assert (nmse < 0.1).all()


def test_estimator_on_noise_alone_is_flagged(case):
    setup, example, _ = case
    noise = torch.randn(2, 4, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.complex128)
    observation = example.observation._replace(y=noise, noise_var=torch.ones(2, 4).double())
    with torch.no_grad():
        estimate = PaperEstimator(unrolled=Unrolled(1, kind="gradient"))(observation, setup.deployment)
    assert (estimate.flags > 0).all()
    for name, field in given(estimate):
        assert torch.isfinite(torch.view_as_real(field) if field.is_complex() else field).all(), name
    spread = estimate.covariance.diagonal(dim1=-2, dim2=-1)[:, :3].sum(-1).sqrt()
    assert (spread > 5.0).all()


def test_estimator_refuses_unknown_grids():
    with pytest.raises(ConfigError, match="neighbours must be one of"):
        PaperEstimator(neighbours=5)
    with pytest.raises(ConfigError, match="spacing_m must be positive"):
        PaperEstimator(spacing_m=0.0)
