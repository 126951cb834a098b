"""The coarse stage on detections made from the truth, and on scenes that cannot be solved."""

import pytest
import torch

from sensing.coarse.localization import CoarseLocalizer
from sensing.coarse.normal_equations import inverse_information
from sensing.coarse.repair import degrees_of_freedom, fit_fails
from sensing.containers import Deployment, Flag, PathEstimates
from tests.conftest import build
from tests.reference.oracle import C, detect, single_path

COUNT = 24


@pytest.fixture(scope="module")
def case(hall):
    example = hall.simulator.examples("test", range(COUNT), snr_db=15.0)
    oracle = detect(example, hall.deployment)
    return example, oracle, CoarseLocalizer()(oracle.paths, hall.deployment)


def only(paths, keep):
    """Paths of a mask."""
    mask = paths.mask & keep
    return PathEstimates(*(field * mask.reshape(*mask.shape, *[1] * (field.ndim - 3)) for field in paths))


def rows(container, index):
    return type(container)(*(field[index] for field in container))


def check_finite(found):
    for part in (found.geometry, found.solution):
        for name, field in part._asdict().items():
            assert torch.isfinite(field).all(), name
    assert torch.isfinite(found.cost_per_dof).all()
    variance = inverse_information(found.solution.information).diagonal(dim1=-2, dim2=-1)
    assert torch.isfinite(variance).all()
    assert (variance > 0).all()
    return variance[:, :3].sum(-1).sqrt()


def has(found, flag):
    return (found.flags & flag) > 0


@pytest.mark.parametrize("shared", [6, 8])
def test_converges_to_the_accuracy_that_it_reports(shared):
    setup = build(shared)
    example = setup.simulator.examples("test", range(COUNT), snr_db=15.0)
    found = CoarseLocalizer()(detect(example, setup.deployment).paths, setup.deployment)
    std = check_finite(found)
    error = (found.geometry.ue_position - example.scene.ue_position).norm(dim=-1)
    good = error < 6.0 * std  # the standard deviation is that of a linear problem
    assert good.double().mean() >= 0.85
    # what went wrong says so
    assert (found.flags[~good] > 0).all()
    assert (found.flags == 0).double().mean() > 0.6
    offset = (found.geometry.offset_m - C * example.scene.clock_offset).abs().amax(-1)
    assert (offset[good] < 8.0 * std[good] + 0.5).all()


def test_nodes_are_true_scatterers_with_true_members(hall, case):
    example, oracle, found = case
    right = total = 0
    for b in range(COUNT):
        if found.flags[b]:
            continue
        for k in found.geometry.node_mask[b].nonzero().flatten().tolist():
            points = {int(oracle.point[b, q, found.path[b, k, q]]) for q in range(4) if found.path[b, k, q] >= 0}
            total += 1
            right += len(points) == 1
            if len(points) == 1:
                gap = found.geometry.node_position[b, k] - example.scene.scatterer_position[b, points.pop()]
                assert gap.norm() < 5.0 * found.solution.node_covariance[b, k].trace().sqrt()
    assert right / total > 0.95


def test_every_path_is_a_member_or_free(case):
    _, oracle, found = case
    geometry = found.geometry
    assert torch.equal(geometry.member.mT, found.path >= 0)
    assert torch.equal(geometry.node_mask, geometry.member.any(1))
    counted = geometry.member.sum(-1) + geometry.free_mask.sum(-1)
    assert torch.equal(counted, oracle.paths.mask.sum(-1))
    for b in range(COUNT):
        for q in range(4):
            used = found.path[b, :, q][found.path[b, :, q] >= 0]
            assert len(used) == len(used.unique())
            free = geometry.free_range_m[b, q][geometry.free_mask[b, q]].tolist()
            rest = set(range(oracle.paths.mask.shape[-1])) - set(used.tolist())
            rest = [slot for slot in rest if oracle.paths.mask[b, q, slot]]
            assert sorted(free) == sorted(oracle.paths.range_m[b, q, rest].tolist())


def test_batch_equals_singles(hall, case):
    _, oracle, whole = case
    for b in range(6):
        alone = CoarseLocalizer()(rows(oracle.paths, [b]), hall.deployment)
        torch.testing.assert_close(alone.geometry.ue_position[0], whole.geometry.ue_position[b], rtol=0, atol=1e-6)
        torch.testing.assert_close(alone.geometry.offset_m[0], whole.geometry.offset_m[b], rtol=0, atol=1e-6)
        assert alone.flags[0] == whole.flags[b]
        members = [sorted(map(tuple, each[(each >= 0).any(-1)].tolist())) for each in (alone.path[0], whole.path[b])]
        assert members[0] == members[1]


def test_order_of_stations_does_not_matter(hall, case):
    _, oracle, whole = case
    order = torch.tensor([2, 0, 3, 1])
    deployment = hall.deployment
    turned = deployment._replace(bs_position=deployment.bs_position[order], bs_rotation=deployment.bs_rotation[order])
    found = CoarseLocalizer()(PathEstimates(*(field[:, order] for field in oracle.paths)), turned)
    trusted = (whole.flags == 0) & (found.flags == 0)
    assert trusted.double().mean() > 0.6
    gap = (found.geometry.ue_position - whole.geometry.ue_position).norm(dim=-1)
    std = check_finite(whole)
    assert (gap[trusted] < 0.5 * std[trusted]).double().mean() > 0.9
    same = gap < 0.02 * std
    offset = found.geometry.offset_m - whole.geometry.offset_m[:, order]
    assert offset[same].abs().max() < 0.05


def test_slots_of_the_paths_do_not_matter(hall, case):
    _, oracle, whole = case
    order = torch.randperm(oracle.paths.mask.shape[-1], generator=torch.Generator().manual_seed(5))
    found = CoarseLocalizer()(PathEstimates(*(field[:, :, order] for field in oracle.paths)), hall.deployment)
    gap = (found.geometry.ue_position - whole.geometry.ue_position).norm(dim=-1)
    assert (gap < 1e-3).double().mean() > 0.9


def test_no_paths(hall, case):
    _, oracle, _ = case
    for slots in (oracle.paths.mask.shape[-1], 1, 0):
        paths = PathEstimates(*(field[:2, :, :slots] for field in oracle.paths))
        found = CoarseLocalizer()(only(paths, torch.tensor(False)), hall.deployment)
        assert has(found, Flag.NO_PATHS).all()
        assert has(found, Flag.TOO_FEW_SHARED).all()
        assert has(found, Flag.UNOBSERVABLE).all()
        assert (check_finite(found) > 10.0).all()
        assert not found.geometry.node_mask.any()


def test_one_path_and_paths_of_one_station(hall, case):
    _, oracle, _ = case
    first, station = torch.zeros_like(oracle.paths.mask), torch.zeros_like(oracle.paths.mask)
    first[:, 1, 0], station[:, 2] = True, True
    for keep in (first, station):
        found = CoarseLocalizer()(only(oracle.paths, keep), hall.deployment)
        assert not has(found, Flag.NO_PATHS)[(oracle.paths.mask & keep).any(-1).any(-1)].any()
        assert has(found, Flag.TOO_FEW_SHARED).all()
        assert has(found, Flag.UNOBSERVABLE).all()
        assert (check_finite(found) > 10.0).all()
        assert torch.equal(found.geometry.free_mask.sum(-1), (oracle.paths.mask & keep).sum(-1))


def test_fewer_than_four_shared_scatterers(hall, case):
    _, oracle, _ = case
    found = CoarseLocalizer()(only(oracle.paths, oracle.point < 2), hall.deployment)
    assert has(found, Flag.TOO_FEW_SHARED).all()
    check_finite(found)


@pytest.mark.parametrize("height", [None, 4.0])
def test_coplanar_scatterers_have_a_mirror_image(hall, height):
    """All scatterers in a horizontal plane: the user and its image explain the paths equally well."""
    example = hall.simulator.examples("test", range(8), snr_db=20.0)
    if height is not None:
        scene = example.scene
        scatterer = scene.scatterer_position.clone()
        scatterer[..., 2] = height
        example = example._replace(scene=scene._replace(scatterer_position=scatterer))
    found = CoarseLocalizer()(detect(example, hall.deployment).paths, hall.deployment)
    std = check_finite(found)
    if height is None:
        assert has(found, Flag.SECOND_MODE).double().mean() < 0.5
    else:
        error = found.geometry.ue_position - example.scene.ue_position
        image = error.clone()
        image[:, 2] = found.geometry.ue_position[:, 2] - (2 * height - example.scene.ue_position[:, 2])
        nearest = torch.minimum(error.norm(dim=-1), image.norm(dim=-1))
        assert (nearest < 4.0 * std + 0.1).double().mean() >= 0.75
        assert (found.flags > 0).double().mean() >= 0.75


@pytest.mark.parametrize("stations", [1, 2])
def test_few_stations(hall, case, stations):
    _, oracle, _ = case
    deployment = hall.deployment
    few = deployment._replace(
        bs_position=deployment.bs_position[:stations], bs_rotation=deployment.bs_rotation[:stations]
    )
    found = CoarseLocalizer()(PathEstimates(*(field[:, :stations] for field in oracle.paths)), few)
    std = check_finite(found)
    if stations == 1:
        assert has(found, Flag.TOO_FEW_SHARED).all()
        assert has(found, Flag.UNOBSERVABLE).all()
        assert (std > 10.0).all()


def test_one_poisoned_scene_does_not_change_the_others(hall, case):
    _, oracle, whole = case
    few = rows(oracle.paths, slice(0, 4))
    for poison in (float("nan"), 1e30):
        bad = few._replace(information=few.information.clone(), range_m=few.range_m.clone())
        bad.range_m[1] = poison
        found = CoarseLocalizer()(bad, hall.deployment)
        for b in (0, 2, 3):
            gap = found.geometry.ue_position[b] - whole.geometry.ue_position[b]
            assert gap.abs().max() < 1e-6
            assert found.flags[b] == whole.flags[b]
        assert found.flags[1] > 0


def test_false_paths_are_left_free(hall):
    """As many random paths again: they are not taken for scatterers, or the flags say so."""
    example = hall.simulator.examples("test", range(COUNT), snr_db=15.0)
    oracle = detect(example, hall.deployment)
    generator = torch.Generator().manual_seed(0)
    shape = (*oracle.paths.mask.shape[:2], 3)
    unit = torch.randn(*shape, 3, generator=generator, dtype=torch.float64)
    unit = unit + 2.0 * hall.deployment.boresight[:, None]
    ghosts = single_path(80.0 * torch.rand(shape, generator=generator), unit, 0.05, 0.01)
    both = PathEstimates(*(torch.cat(fields, 2) for fields in zip(oracle.paths, ghosts, strict=True)))
    found = CoarseLocalizer()(both, hall.deployment)
    std = check_finite(found)
    error = (found.geometry.ue_position - example.scene.ue_position).norm(dim=-1)
    good = error < 5.0 * std
    assert good.double().mean() > 0.7
    assert (~good & (found.flags == 0)).double().mean() < 0.1


def test_flat_offset_prior(hall, case):
    example, oracle, _ = case
    flat: Deployment = hall.deployment._replace(clock_offset_std=torch.tensor(float("inf"), dtype=torch.float64))
    # in some scenes a station sees no shared scatterer at all
    keep = torch.ones_like(oracle.paths.mask)
    keep[:4, 3] = False
    found = CoarseLocalizer()(only(oracle.paths, keep), flat)
    check_finite(found)
    error = (found.geometry.ue_position - example.scene.ue_position).norm(dim=-1)
    trusted = found.flags == 0
    assert trusted.double().mean() > 0.3
    assert (error[trusted] < 1.0).double().mean() > 0.8


def test_chi_square_test():
    path = torch.tensor([[[0, 1, 2], [1, -1, 0], [-1, -1, -1]]])
    assert degrees_of_freedom(path).tolist() == [3 * 5 - 3 * 2 - 3]
    seen = int((path >= 0).any(-2).sum())
    assert degrees_of_freedom(path, offset_prior=False).tolist() == [3 * 5 - 3 * 2 - 3 - seen]
    # 6 degrees of freedom: the 1e-4 quantile is 27.86
    assert fit_fails(torch.tensor([27.9]), path).all()
    assert not fit_fails(torch.tensor([27.8]), path).any()
