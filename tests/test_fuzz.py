"""Whatever comes in, a typed error or finite numbers come out.

Inputs are built from drawn choices and a drawn seed. The examples are the same in every run; FUZZ_EXAMPLES=1000 draws
so many new ones instead.
"""

import math
import os

import h5py
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, Phase, given, note, settings
from hypothesis import strategies as st

from sensing import metrics
from sensing.bounds import uplink_bound
from sensing.channel import channel_response, scene_paths
from sensing.coarse.detection import PathDetector
from sensing.coarse.localization import CoarseLocalizer
from sensing.coarse.noise import estimate_noise_variance
from sensing.containers import Deployment, Flag, Observation, PathEstimates, Scene, map_tensors
from sensing.data import read_observations, write_observations
from sensing.errors import FileFormatError, SensingError
from sensing.estimator import build_estimator
from sensing.geometry import facing, tangent_basis

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "0"))
DETECTOR = PathDetector(max_paths=5)
ESTIMATORS = {
    noise: build_estimator(DETECTOR, unrolled={"num_iterations": 2}, noise=noise) for noise in ("known", "estimated")
}


def fuzz(examples):
    """A bounded number of examples, the same in every run unless new ones are asked for."""
    return settings(
        max_examples=EXAMPLES or examples,
        derandomize=not EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.explicit, Phase.generate],  # shrinking takes minutes
        report_multiple_bugs=False,
    )


def finite(container):
    """Every tensor of a NamedTuple is finite."""
    for name, field in zip(container._fields, container, strict=True):
        if isinstance(field, torch.Tensor):
            parts = torch.view_as_real(field) if field.is_complex() else field
            assert bool(torch.isfinite(parts).all()), name


@st.composite
def deployments(draw) -> Deployment:
    """Few stations, antennas and pilots in every arrangement that validates."""
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    bs, ant, sc = draw(st.integers(1, 4)), draw(st.integers(1, 7)), draw(st.integers(2, 9))
    size = draw(st.sampled_from([1.0, 40.0, 3000.0]))
    position = rng.uniform(0, size, (bs, 3)) * [1, 1, draw(st.sampled_from([0.0, 0.2]))]
    if draw(st.booleans()):
        position[-1] = position[0]
    shape = draw(st.sampled_from([[0, 0, 0], [0, 1, 0], [0, 1, 1], [1, 1, 1]]))
    carrier = draw(st.sampled_from([1e9, 28e9]))
    spacing = draw(st.sampled_from([15e3, 2e6, 50e6]))
    steps = rng.integers(1, 3, sc) if draw(st.booleans()) else np.ones(sc)
    region = [[0.0, 0.0, 0.0], [size, size, 0.2 * size]]
    height = draw(st.sampled_from([None, (0.1, 0.1), (0.0, 0.15), (-5.0, 50.0)]))
    std = draw(st.sampled_from([0.0, 1e-9, 1e-5, math.inf]))
    target = torch.tensor([[0.51, 0.49, 0.03]], dtype=torch.float64) * size
    return Deployment(
        bs_position=torch.from_numpy(position),
        bs_rotation=facing(torch.from_numpy(position), target[0], True),
        antenna_local=torch.from_numpy(rng.uniform(-1, 1, (ant, 3)) * shape * 0.3 / carrier * 1e9),
        pilot_freq=torch.from_numpy(np.cumsum(steps) * spacing),
        carrier_hz=torch.tensor(carrier, dtype=torch.float64),
        clock_offset_std=torch.tensor(std, dtype=torch.float64),
        region=torch.tensor(region, dtype=torch.float64) if draw(st.booleans()) else None,
        ue_height_range=None if height is None else size * torch.tensor(height, dtype=torch.float64),
    ).validate()


def scenes(plan, rng, count, points) -> Scene:
    """Random truths, some of whose points nobody sees."""
    bs = len(plan.bs_position)
    extent = float((plan.bs_position.amax(0) - plan.bs_position.amin(0)).max()) + 1.0
    normal = rng.standard_normal
    return Scene(
        torch.from_numpy(rng.uniform(0, extent, (count, 3))),
        torch.from_numpy(rng.uniform(0, extent, (count, points, 3))),
        torch.from_numpy(rng.random((count, bs, points)) < 0.7),
        torch.from_numpy(1e-8 * normal((count, bs))),
        torch.from_numpy(normal((count, bs, points)) + 1j * normal((count, bs, points))),
    )


@st.composite
def observed(draw) -> tuple[Deployment, Observation]:
    """Scenes, noise, silence, a constant or a single entry, at any scale and noise level."""
    plan = draw(deployments())
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    count, points = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    truth = scenes(plan, rng, count, points)
    y = channel_response(scene_paths(truth, plan), plan)
    kind = draw(st.sampled_from(["scene", "scene", "scene", "noise", "zero", "constant", "single", "dead station"]))
    if kind in ("noise", "zero", "single"):
        y = 0.0 * y
    if kind == "constant":
        y = torch.ones_like(y)
    if kind == "single":
        y[0, 0, 0, 0] = 1.0
    if kind == "dead station":
        y[:, 0] = 0.0
    noise = draw(st.sampled_from([1e-12, 1e-4, 1.0, 1e4]))
    if kind != "zero":
        unit = rng.standard_normal(y.shape) + 1j * rng.standard_normal(y.shape)
        y = y + math.sqrt(noise / 2) * torch.from_numpy(unit)
    told = noise * draw(st.sampled_from([1.0, 1.0, 1e-3, 1e3]))  # the noise variance may be wrong
    scale = 10.0 ** draw(st.integers(-30, 30))
    variance = torch.full(y.shape[:2], told * scale**2, dtype=torch.float64)
    dtype = draw(st.sampled_from([torch.complex128, torch.complex128, torch.complex64]))
    if dtype == torch.complex64:
        y, variance = y.to(dtype), variance / scale**2
        return plan, Observation(y, variance)
    return plan, Observation(scale * y, variance)


@fuzz(20)
@given(observed(), st.sampled_from(["known", "estimated"]))
def test_estimator_is_finite_and_says_what_it_doubts(case, noise):
    plan, observation = case
    with torch.no_grad():
        found = ESTIMATORS[noise](observation, plan)
    finite(found)
    assert found.channel.shape == observation.y.shape
    for bits in found.flags.tolist():
        assert bits == 0 or Flag.describe(bits)
    variance = found.covariance.diagonal(dim1=-2, dim2=-1)
    assert (variance > 0).all()
    assert ((found.support >= 0) & (found.support <= 1)).all()
    untrusted = found.flags & (Flag.NO_PATHS | Flag.TOO_FEW_SHARED) != 0
    assert untrusted[(observation.y == 0).flatten(1).all(-1)].all()


BROKEN = {
    "nan": lambda field, _: torch.full_like(field, math.nan),
    "one nan": lambda field, rng: (
        field.flatten().index_fill(0, torch.tensor([rng.integers(field.numel())]), math.nan).reshape(field.shape)
    ),
    "inf": lambda field, _: torch.full_like(field, math.inf),
    "negative": lambda field, _: -field,
    "zero": lambda field, _: 0.0 * field,
    "huge": lambda field, _: 1e200 * field,
    "tiny": lambda field, _: 1e-200 * field,
    "cut": lambda field, _: field[..., :-1] if field.ndim else field[None],
    "longer": lambda field, _: torch.cat([field, field], -1) if field.ndim else field[None],
    "one axis more": lambda field, _: field[None],
    "first axis less": lambda field, _: field[0] if field.ndim else field[None],
    "empty": lambda field, _: field[:0] if field.ndim else field[None][:0],
    "whole numbers": lambda field, _: field.real.long() if field.is_complex() else field.long(),
    "complex": lambda field, _: field + 1j,
    "single precision": lambda field, _: field.to(torch.complex64 if field.is_complex() else torch.float32),
    "reversed": lambda field, _: field.flip(0) if field.ndim else field,
}


@fuzz(40)
@given(observed(), st.sampled_from(sorted(BROKEN)), st.integers(0, 2**32 - 1), st.sampled_from(["known", "estimated"]))
def test_broken_input_is_a_typed_error_or_harmless(case, how, seed, noise):
    plan, observation = case
    rng = np.random.default_rng(seed)
    names = [("plan", f) for f in Deployment._fields if getattr(plan, f) is not None]
    where, name = [*names, ("observation", "y"), ("observation", "noise_var")][rng.integers(len(names) + 2)]
    note(f"{where}.{name}: {how}")
    container = plan if where == "plan" else observation
    changed = container._replace(**{name: BROKEN[how](getattr(container, name), rng)})
    plan, observation = (changed, observation) if where == "plan" else (plan, changed)
    try:
        with torch.no_grad():
            found = ESTIMATORS[noise](observation, plan)
    except SensingError as error:
        assert len(str(error)) > 20  # noqa: PT017 (an error is one of two right answers)
    else:
        finite(found)


@fuzz(12)
@given(observed())
def test_detector_and_noise_are_finite(case):
    plan, observation = case
    paths = DETECTOR(observation, plan)
    finite(paths)
    assert (paths.direction.norm(dim=-1) - 1.0).abs().max() < 1e-9
    assert paths.mask.shape[-1] >= 1
    variance = estimate_noise_variance(observation, plan, DETECTOR)
    assert bool(torch.isfinite(variance).all() and (variance > 0).all())


@st.composite
def detections(draw) -> tuple[Deployment, PathEstimates]:
    """Random paths of any precision, in every number."""
    plan = draw(deployments())
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = draw(st.integers(1, 2)), len(plan.bs_position), draw(st.integers(0, 6))
    k = torch.from_numpy(rng.standard_normal((*shape, 3)))
    k = k / k.norm(dim=-1, keepdim=True)
    if draw(st.booleans()) and k.numel():
        k[...] = k[0, 0, 0]
    lift = torch.zeros(*shape, 4, 3, dtype=torch.float64)
    lift[..., 0, 0] = 1.0
    lift[..., 1:, 1:] = tangent_basis(k)
    low, high = draw(st.sampled_from([(-9, -8), (-3, 0), (-9, 3), (2, 3)]))
    deviation = torch.from_numpy(10.0 ** rng.uniform(low, high, (*shape, 3)))
    covariance = lift @ torch.diag_embed(deviation.square()) @ lift.mT
    information = lift @ torch.diag_embed(deviation.square().reciprocal()) @ lift.mT
    reach = float(plan.range_ambiguity) * draw(st.sampled_from([0.0, 0.01, 1.0]))
    mask = torch.from_numpy(rng.random(shape) < draw(st.sampled_from([0.0, 0.5, 1.0])))
    gain = torch.from_numpy(rng.standard_normal(shape) + 1j * rng.standard_normal(shape))
    return plan, PathEstimates(
        torch.from_numpy(rng.uniform(0, 1, shape)) * reach, k, gain, information, covariance, mask
    )


@fuzz(25)
@given(detections())
def test_coarse_location_of_any_paths_is_finite(case):
    plan, paths = case
    with torch.no_grad():
        found = CoarseLocalizer()(paths, plan)
    finite(found.geometry)
    finite(found.solution)
    assert torch.isfinite(found.cost_per_dof).all()
    assert torch.isfinite(found.rival).all()
    members = [row[row >= 0].tolist() for row in found.path.transpose(1, 2).flatten(0, 1)]
    assert all(len(set(row)) == len(row) for row in members), "a path in two clusters"


@fuzz(40)
@given(deployments(), st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_bounds_are_numbers_or_infinite(plan, seed, points):
    rng = np.random.default_rng(seed)
    truth = scenes(plan, rng, 2, points)
    if rng.random() < 0.3:
        truth = truth._replace(scatterer_position=truth.scatterer_position[:, :1].expand(-1, points, -1))
    variance = torch.full((2, len(plan.bs_position)), 10.0 ** rng.uniform(-8, 4), dtype=torch.float64)
    bound = uplink_bound(truth, variance, plan)
    for name, field in zip(bound._fields, bound, strict=True):
        assert not bool(field.isnan().any()), name
    for deviation in (bound.ue_position_m, bound.clock_offset_s, bound.scatterer_m):
        assert (deviation >= 0).all()


@fuzz(60)
@given(st.integers(0, 2**32 - 1), st.integers(0, 5), st.integers(0, 5), st.sampled_from([1e-30, 1.0, 1e30]))
def test_metrics_of_finite_estimates_are_finite(seed, nodes, points, scale):
    rng = np.random.default_rng(seed)

    def uniform(*shape):
        return scale * torch.from_numpy(rng.uniform(-10, 10, shape))

    def some(*shape):
        return torch.from_numpy(rng.random(shape) < 0.6)

    estimated, true = uniform(2, nodes, 3), uniform(2, points, 3)
    distance = metrics.gospa(estimated, some(2, nodes), true, some(2, points), 2.0)
    assert bool(torch.isfinite(distance).all() and (distance >= 0).all())
    index = metrics.match_scatterers(estimated, some(2, nodes), true, some(2, 3, points), 2.0)
    assert index.shape == (2, points)
    assert int(index.max(initial=-1) if isinstance(index, np.ndarray) else (index.max() if points else -1)) < max(
        nodes, 1
    )
    assert torch.isfinite(metrics.position_error(uniform(2, 3), uniform(2, 3))).all()
    assert torch.isfinite(metrics.nmse_db(uniform(2, 2, 2, 3), uniform(2, 2, 2, 3))).all()
    error = metrics.clock_offset_error(uniform(2, 3), uniform(2, 3), rng.choice([1.0, math.inf]))
    assert bool(torch.isfinite(error).all() and (error >= 0).all())


@pytest.fixture(scope="module")
def small_file(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    plan = Deployment(
        torch.eye(3, dtype=torch.float64)[:2],
        torch.eye(3, dtype=torch.float64).expand(2, 3, 3),
        0.01 * torch.eye(3, dtype=torch.float64),
        torch.arange(4, dtype=torch.float64) * 1e6,
        torch.tensor(1e9, dtype=torch.float64),
        torch.tensor(1e-8, dtype=torch.float64),
    )
    truth = scenes(plan, np.random.default_rng(0), 2, 3)
    y = channel_response(scene_paths(truth, plan), plan)
    path = folder / "small.h5"
    write_observations(path, plan, Observation(y, torch.ones(2, 2, dtype=torch.float64)), scene=truth)
    return path


@fuzz(80)
@given(data=st.data())
def test_a_damaged_file_is_refused_or_read_whole(small_file, data):
    raw = bytearray(small_file.read_bytes())
    if data.draw(st.booleans()):
        del raw[data.draw(st.integers(0, len(raw) - 1)) :]
    else:
        for _ in range(data.draw(st.integers(1, 8))):
            raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    path = small_file.with_name("damaged.h5")
    path.write_bytes(raw)
    try:
        found = read_observations(path)
    except FileFormatError as error:
        assert str(path) in str(error)  # noqa: PT017
    else:
        finite(found.observation)
        found.deployment.validate()


FIELD_VALUES = [math.nan, math.inf, -math.inf, -1.0, 0.0, 1e308, 5e-324]


@pytest.mark.filterwarnings("ignore::RuntimeWarning", "ignore:Casting complex")
@fuzz(80)
@given(data=st.data())
def test_a_file_with_a_wrong_value_is_refused_or_validates(small_file, data):
    path = small_file.with_name("changed.h5")
    path.write_bytes(small_file.read_bytes())
    with h5py.File(path, "a") as file:
        names = []
        file.visititems(lambda name, node: names.append(name) if isinstance(node, h5py.Dataset) else None)
        name = data.draw(st.sampled_from(sorted(names)))
        values = file[name][()]
        kind = data.draw(st.sampled_from(["value", "shape", "type", "gone"]))
        if kind == "value" and values.dtype.kind in "fc":
            flat = np.atleast_1d(values).reshape(-1)
            flat[data.draw(st.integers(0, flat.size - 1))] = data.draw(st.sampled_from(FIELD_VALUES))
            values = flat.reshape(values.shape)
        if kind == "shape":
            values = data.draw(st.sampled_from([values[None], values[..., :0] if values.ndim else values[None]]))
        if kind == "type":
            values = values.astype(data.draw(st.sampled_from(["i8", "f4", "S4", "?"])), casting="unsafe")
        del file[name]
        if kind != "gone":
            file[name] = values
    try:
        found = read_observations(path)
    except FileFormatError as error:
        assert str(path) in str(error)  # noqa: PT017
    else:
        found.deployment.validate()
        found.observation.validate(found.deployment, noise_known=kind != "gone")
        map_tensors(found.observation, lambda field: field)
