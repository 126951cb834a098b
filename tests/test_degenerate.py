"""Scenes and stations that do not determine the user: finite numbers, a reason in the flags, a covariance to match."""

import math

import pytest
import torch

from sensing import arrays, ofdm
from sensing.channel import channel_response, scene_paths
from sensing.coarse.doubts import DIRECTIONS, deployment_flags
from sensing.containers import Deployment, Estimate, Flag, Observation, Scene, map_tensors
from sensing.errors import DomainError
from sensing.estimator import build_estimator
from sensing.metrics import clock_offset_error
from sensing.simulation import build_deployment
from tests.reference.oracle import C

CORNERS = [[0, 0, 6], [40, 0, 6], [40, 40, 6], [0, 40, 6]]
USER = (20.0, 15.0, 1.5)
ANY = -1  # flagged, for whatever reason


def double(values):
    return torch.tensor(values, dtype=torch.float64)


def deployment(stations=CORNERS, array=None, pilots=None, std=1 / 122.88e6) -> Deployment:
    array = arrays.upa(8, 8) if array is None else array
    pilots = ofdm.pilot_frequencies(1024, 120e3, 16) if pilots is None else double(pilots)
    region = [[0, 0, 0], [40, 40, 8]]
    return build_deployment(stations, array, pilots, 28e9, std, target=[20, 20, 4], region=region)


def points(seed=0, count=8):
    generator = torch.Generator().manual_seed(seed)
    lower, upper = double([2, 2, 0.5]), double([38, 38, 7.5])
    return lower + (upper - lower) * torch.rand(count, 3, generator=generator, dtype=torch.float64)


def make(plan, position, visible=None, user=USER, offset=None, seed=0) -> Scene:
    """One scene with constant-modulus gains."""
    generator = torch.Generator().manual_seed(seed)
    bs, count = len(plan.bs_position), len(position)
    visible = torch.ones(bs, count, dtype=torch.bool) if visible is None else visible
    phase = 2.0 * math.pi * torch.rand(bs, count, generator=generator, dtype=torch.float64)
    offset = 8e-9 * torch.randn(bs, generator=generator, dtype=torch.float64) if offset is None else offset
    gain = torch.polar(torch.ones_like(phase), phase)
    return Scene(double([user]), position[None], visible[None], offset[None], gain[None])


def receive(plan, scene, snr_db=15.0) -> Observation:
    """Unit path gains over noise; the noise of unit variance where there is no path."""
    y = channel_response(scene_paths(scene, plan), plan)
    power = y.abs().square().mean((-3, -2, -1), keepdim=True)
    variance = torch.where(power > 0, power / 10 ** (snr_db / 10), torch.ones_like(power))
    noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(7), dtype=torch.complex128)
    return Observation(y + variance.sqrt() * noise, variance[..., 0, 0].expand(y.shape[:2]).clone())


def locate(plan, observation, **settings) -> Estimate:
    with torch.no_grad():
        found = build_estimator(unrolled={"num_iterations": 3}, **settings)(observation, plan)
    for name, field in zip(Estimate._fields, found, strict=True):
        assert field is None or torch.isfinite(torch.view_as_real(field) if field.is_complex() else field).all(), name
    return found


def line_of_points(seed):
    position = points(seed)
    position[:, 0] = torch.linspace(4, 36, 8)
    position[:, 1:] = double([10.0, 3.0])
    return position


def circle_about_the_user():
    angle = torch.linspace(0.0, 5.5, 8, dtype=torch.float64)
    ring = torch.stack([angle.cos(), angle.sin(), torch.zeros_like(angle)], -1)
    return double(USER) + 10.0 * ring


def hall_scenes():
    """Name to (scene, flags that must be set); None: any, or an error within the covariance."""
    plan, position = deployment(), points()
    none = torch.zeros(4, 8, dtype=torch.bool)
    one, lonely, single = none.clone(), none.clone(), none.clone()
    one[0, 0], lonely[1], single[:, 0] = True, True, True
    twins, flat, wall, level = position.clone(), position.clone(), position.clone(), position.clone()
    twins[1] = twins[0] + 0.05
    flat[:, 2], wall[:, 0], level[:, 2] = 3.0, 10.0, USER[2]
    few = Flag.TOO_FEW_SHARED | Flag.UNOBSERVABLE
    return plan, {
        "good": (make(plan, position), 0),
        "no path": (make(plan, position, none), Flag.NO_PATHS | few),
        "one path": (make(plan, position, one), few),
        "all paths in one station": (make(plan, position, lonely), few),
        "one scatterer, seen by all": (make(plan, position, single), few),
        "two closer than the resolution": (make(plan, twins), None),
        "coplanar, horizontal": (make(plan, flat), None),
        "coplanar, vertical": (make(plan, wall), None),
        "all at the user's height": (make(plan, level), None),
        "all on a line": (make(plan, line_of_points(0)), Flag.SECOND_MODE),
        "another line": (make(plan, line_of_points(3), seed=3), None),
        "a circle about the user": (make(plan, circle_about_the_user()), Flag.SECOND_MODE),
        "a scatterer at a station": (make(plan, torch.cat([position[:7], plan.bs_position[:1] + 1e-3])), 0),
        "the user at a scatterer": (make(plan, position, user=tuple(position[0].tolist())), 0),
        "the user outside": (make(plan, position, user=(60.0, 15.0, 1.5)), Flag.OUTSIDE_REGION),
        "the user an ambiguity away": (make(plan, position, user=(300.0, 15.0, 1.5)), ANY),
    }


PLAN, SCENES = hall_scenes()


@pytest.fixture(scope="module")
def found():
    observations = [receive(PLAN, scene) for scene, _ in SCENES.values()]
    y, noise_var = (torch.cat([getattr(each, name) for each in observations]) for name in ("y", "noise_var"))
    return locate(PLAN, Observation(y, noise_var))


@pytest.mark.parametrize("name", SCENES)
def test_degenerate_scene(found, name):
    scene, wanted = SCENES[name]
    index = list(SCENES).index(name)
    flags = int(found.flags[index])
    error = float((found.ue_position[index] - scene.ue_position[0]).norm())
    std = float(found.covariance[index, :3, :3].trace().sqrt())
    if wanted in (0, ANY):
        assert (flags == 0) == (wanted == 0)
    elif wanted is not None:
        assert flags & wanted == wanted
        assert all(reason in Flag.describe(flags) for reason in Flag.describe(wanted).split("|"))
    if wanted not in (ANY, Flag.OUTSIDE_REGION):  # which breaks a promise of the deployment
        assert error < 4.0 * std


@pytest.mark.parametrize(
    ("plan", "wanted"),
    [
        (deployment(4 * [CORNERS[0]]), Flag.TOO_FEW_SHARED | Flag.UNOBSERVABLE),
        (deployment(CORNERS[:1]), Flag.TOO_FEW_SHARED | Flag.UNOBSERVABLE),
        (deployment([CORNERS[0], *CORNERS[:1], *CORNERS[2:]]), 0),
        (deployment([*CORNERS, *CORNERS[:2]]), 0),
        (deployment(pilots=[-61e6, 61e6]), Flag.RANGE_AMBIGUOUS),
        (deployment(pilots=[-1e6, 1e6]), Flag.RANGE_AMBIGUOUS),
        (deployment(pilots=[-61e6, -20e6, 20e6, 61e6]), Flag.RANGE_AMBIGUOUS),
        (deployment(array=arrays.ula(1)), Flag.DIRECTION_AMBIGUOUS | Flag.UNOBSERVABLE),
        (deployment(array=arrays.ula(16)), Flag.DIRECTION_AMBIGUOUS),
    ],
    ids=[
        "all stations at one point",
        "one station",
        "two stations at one point",
        "stations listed twice",
        "two pilots, ranges modulo 2.5 m",
        "two pilots, ranges modulo 150 m",
        "four pilots, ranges modulo 7 m",
        "one antenna",
        "a line of antennas",
    ],
)
def test_degenerate_deployment(plan, wanted):
    scene = make(plan, points())
    found = locate(plan, receive(plan, scene))
    flags = int(found.flags[0])
    assert flags == 0 if wanted == 0 else flags & wanted == wanted
    error = (found.ue_position[0] - scene.ue_position[0]).norm()
    assert error < 4.0 * found.covariance[0, :3, :3].trace().sqrt()


def test_usual_deployments_are_not_ambiguous():
    """Eight pilots still repeat path lengths only every 17 m, and the classical estimator is at the bound there."""
    assert deployment_flags(deployment()) == 0
    assert deployment_flags(deployment(pilots=torch.linspace(-61e6, 61e6, 8).tolist())) == 0
    tilted = deployment(array=arrays.elements([[0, 0, 0], [0.1, 0.5, 0], [0.3, 0.1, 0.6]]))
    assert deployment_flags(tilted) & Flag.DIRECTION_AMBIGUOUS == 0


@pytest.mark.parametrize(
    ("ny", "nz", "coarse"), [(2, 2, True), (3, 3, True), (2, 5, True), (4, 4, False), (3, 8, False)]
)
def test_few_antennas_are_flagged(ny, nz, coarse):
    """Half-wavelength panels resolve about as many directions as beams fit into the disc of cosines."""
    plan = deployment(array=arrays.upa(ny, nz))
    assert deployment_flags(plan) == (Flag.COARSE_ARRAY if coarse else 0)
    # independently: area of the disc over the volume of a beam's ellipsoid of concentration, by the pattern itself
    cosine = torch.linspace(-1, 1, 201, dtype=torch.float64)
    y, z = (2.0 * torch.pi / plan.wavelength * plan.antenna_local[:, i] for i in (1, 2))
    curvature = []
    for position in (y, z):
        beam = torch.exp(1j * position[:, None] * cosine).mean(0).abs().square()
        centre, step = 100, float(cosine[1] - cosine[0])
        curvature.append(-float(beam[centre + 1] - 2 * beam[centre] + beam[centre - 1]) / step**2)
    # |pattern|^2 = 1 - (2 pi sigma / wavelength)^2 cosine^2 + ...
    spread = [math.sqrt(value / 2.0) / (2.0 * math.pi) for value in curvature]
    assert (12.0 * math.pi * spread[0] * spread[1] < DIRECTIONS) == coarse


@pytest.mark.parametrize("std", [1e-6, float("inf")])
def test_offsets_beyond_the_delay_ambiguity_are_found_modulo_it(std):
    """Clocks off by up to 3 microseconds, path lengths known modulo 0.52 microseconds."""
    plan = deployment(std=std)
    ambiguity = 1.0 / float(plan.pilot_spacing)
    offset = double([3e-6, -2e-6, 1e-6, 5e-7])
    scene = make(plan, points(), offset=offset)
    found = locate(plan, receive(plan, scene))
    assert int(found.flags[0]) == 0
    assert (found.ue_position - scene.ue_position).norm() < 0.2
    miss = found.clock_offset[0] - offset
    assert miss.abs().max() > ambiguity / 2
    assert C * (miss - ambiguity * (miss / ambiguity).round()).abs().max() < 0.2
    assert C * clock_offset_error(found.clock_offset, scene.clock_offset, ambiguity)[0] < 0.2
    assert C * clock_offset_error(found.clock_offset, scene.clock_offset)[0] > 100.0


@pytest.mark.parametrize("noise", ["known", "estimated"])
@pytest.mark.parametrize("scale", [1e-6, 1e6])
def test_scale_does_not_matter(scale, noise):
    observation = receive(PLAN, SCENES["good"][0])
    plain = locate(PLAN, observation, noise=noise)
    scaled = locate(PLAN, Observation(scale * observation.y, scale**2 * observation.noise_var), noise=noise)
    torch.testing.assert_close(scaled.ue_position, plain.ue_position, rtol=0, atol=1e-6)
    torch.testing.assert_close(scaled.covariance, plain.covariance, rtol=1e-4, atol=1e-9)
    assert torch.equal(scaled.flags, plain.flags)


@pytest.mark.parametrize("scale", [1e-150, 1e150])
def test_a_scale_at_the_end_of_double_precision_is_refused(scale):
    observation = receive(PLAN, SCENES["good"][0])
    with pytest.raises(DomainError, match=r"y must have magnitudes from 1e-50 to 1e\+50 \(its unit is free"):
        locate(PLAN, Observation(scale * observation.y, scale**2 * observation.noise_var))


def test_one_bad_scene_of_a_batch_is_named():
    y, noise_var, *_ = map_tensors(receive(PLAN, SCENES["good"][0]), lambda field: torch.cat(3 * [field]))
    y[1, 2, 3, 4] = float("nan")
    with pytest.raises(
        DomainError, match=r"y must be finite, got 1 non-finite values, the first at index \[1, 2, 3, 4\]"
    ):
        locate(PLAN, Observation(y, noise_var))
