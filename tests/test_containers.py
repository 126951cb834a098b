"""Validation of what comes from outside, and the containers' behaviour in a batch."""

import math

import pytest
import torch
from torch.utils.data import default_collate

from sensing.containers import Flag, Observation, Scene, map_tensors, to_device
from sensing.errors import DomainError, ShapeError

NAN, INF = math.nan, math.inf


def double(value):
    return torch.tensor(value, dtype=torch.float64)


DEPLOYMENT_CASES = [
    ("bs_position", lambda d: d.bs_position[:, :2], ShapeError),
    ("bs_position", lambda d: d.bs_position * NAN, DomainError),
    ("bs_rotation", lambda d: d.bs_rotation[:2], ShapeError),
    ("bs_rotation", lambda d: d.bs_rotation * 1.01, DomainError),
    ("bs_rotation", lambda d: -d.bs_rotation, DomainError),
    ("bs_rotation", lambda d: d.bs_rotation * NAN, DomainError),
    ("antenna_local", lambda d: d.antenna_local[:, :2], ShapeError),
    ("antenna_local", lambda d: d.antenna_local * INF, DomainError),
    ("pilot_freq", lambda d: d.pilot_freq[None], ShapeError),
    ("pilot_freq", lambda d: d.pilot_freq.flip(0), DomainError),
    ("pilot_freq", lambda d: d.pilot_freq[[0, 1, 1, 2]], DomainError),
    ("pilot_freq", lambda d: torch.cat([d.pilot_freq, double([NAN])]), DomainError),
    ("carrier_hz", lambda d: double(0.0), DomainError),
    ("carrier_hz", lambda d: double(INF), DomainError),
    ("clock_offset_std", lambda d: double(-1e-9), DomainError),
    ("clock_offset_std", lambda d: double(NAN), DomainError),
    ("region", lambda d: double([[0.0, 0, 0]]), ShapeError),
    ("region", lambda d: double([[0.0, 0, 0], [1, 1, 0]]), DomainError),
    ("ue_height_range", lambda d: double([2.0, 1.0]), DomainError),
    ("ue_height_range", lambda d: double([1.0]), ShapeError),
    ("ue_height_range", lambda d: double([1.0, NAN]), DomainError),
]


@pytest.mark.parametrize(("field", "change", "error"), DEPLOYMENT_CASES)
def test_bad_deployments(tiny, field, change, error):
    bad = tiny.deployment._replace(**{field: change(tiny.deployment)})
    with pytest.raises(error, match=field):
        bad.validate()


def test_good_deployments(tiny):
    for std in (0.0, 1e-9, INF):
        deployment = tiny.deployment._replace(clock_offset_std=double(std))
        assert deployment.validate() is deployment


OBSERVATION_CASES = [
    ("y", lambda o: {"y": o.y[:, :2]}, ShapeError),
    ("y", lambda o: {"y": o.y[..., :3]}, ShapeError),
    ("y", lambda o: {"y": o.y.transpose(-1, -2)}, ShapeError),
    ("y", lambda o: {"y": o.y.real}, DomainError),
    ("y", lambda o: {"y": o.y * NAN}, DomainError),
    ("noise_var", lambda o: {"noise_var": o.noise_var[:, :2]}, ShapeError),
    ("noise_var", lambda o: {"noise_var": o.noise_var * 0}, DomainError),
    ("noise_var", lambda o: {"noise_var": -o.noise_var}, DomainError),
    ("noise_var", lambda o: {"noise_var": o.noise_var * NAN}, DomainError),
    ("noise_var", lambda o: {"noise_var": o.noise_var[:1].repeat(5, 1)}, ShapeError),
    ("noise_var", lambda o: {"noise_var": o.noise_var.to(torch.complex128)}, DomainError),
]


@pytest.mark.parametrize(("field", "change", "error"), OBSERVATION_CASES)
def test_bad_observations(tiny, field, change, error):
    observation = tiny.simulator.examples("test", range(2)).observation
    assert observation.validate(tiny.deployment) is observation
    with pytest.raises(error, match=field):
        observation._replace(**change(observation)).validate(tiny.deployment)


def test_observation_without_batch_axis(tiny):
    observation = tiny.simulator.examples("test", range(2)).observation
    map_tensors(observation, lambda t: t[0]).validate(tiny.deployment)


def test_properties(tiny):
    deployment = tiny.deployment
    assert float(deployment.wavelength) == pytest.approx(0.0299792458)
    assert float(deployment.pilot_spacing) == pytest.approx(8e6), "the smallest distance of uneven pilots"
    lone = deployment._replace(pilot_freq=deployment.pilot_freq[:1])
    assert math.isinf(float(lone.pilot_spacing))
    assert float(lone.range_ambiguity) == 0


def test_map_tensors_keeps_types_and_none(tiny):
    example = tiny.simulator.examples("test", range(2))
    moved = to_device(example._replace(channel=None), "cpu")
    assert type(moved) is type(example)
    assert isinstance(moved.scene, Scene)
    assert moved.channel is None
    assert torch.equal(moved.observation.y, example.observation.y)


def test_containers_pass_collate(tiny):
    singles = [map_tensors(tiny.simulator.examples("test", [i]), lambda t: t[0]) for i in range(3)]
    pilots = torch.eye(10).expand(3, 10, 10)
    singles = [
        each._replace(observation=each.observation._replace(whitener=pilots, known_user=pilots[0, 0, :3]))
        for each in singles
    ]
    batch = default_collate(singles)
    assert isinstance(batch.observation, Observation)
    assert batch.observation.y.shape[0] == 3


def test_flags_have_names():
    assert Flag.describe(0) == ""
    assert Flag.describe(Flag.TOO_FEW_SHARED | Flag.DIVERGED) == "too_few_shared|diverged"
    bits = [value for name, value in vars(Flag).items() if name.isupper() and name != "NAMES"]
    assert sorted(bits) == sorted(Flag.NAMES)
