"""Impairments follow their laws, are neutral at severity 0, and stay with the hardware or with the scene."""

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from benchmarks.hall import hall
from sensing import arrays, ofdm
from sensing.channel import channel_response, scene_paths
from sensing.cli import conf_dir
from sensing.data.scenes import SceneDataModule
from sensing.errors import ConfigError
from sensing.simulation import Impairments, Simulator, build_deployment
from sensing.simulation.hardware import draw_hardware
from sensing.simulation.propagation import Draws, diffuse_tail
from sensing.simulation.uplink import noise_variance
from sensing.units import SPEED_OF_LIGHT

ONE = {
    "elements": {"gain_db": 0.5, "phase_deg": 10.0},
    "element_positions": {"element_wavelengths": 0.02},
    "coupling": {"coupling": 0.1},
    "stations": {"station_m": 0.1, "station_deg": 0.5},
    "noise": {"noise_db": 6.0, "noise_spread_db": 3.0},
    "clocks": {"clock_factor": 4.0},
    "gains": {"gain_spread_db": 8.0},
    "diffuse": {"diffuse": 0.1},
    "multi_bounce": {"multi_bounce": 0.316},
    "extent": {"extent_m": 0.3},
    "visibility": {"visibility_m": 15.0},
}
ALL = {name: value for sizes in ONE.values() for name, value in sizes.items()}
PLAIN = hall(6)


def impaired(seed: int = 0, **sizes) -> Simulator:
    return Simulator(PLAIN.deployment, PLAIN.sampler, seed, Impairments(**sizes))


def many_stations(count: int, **sizes):
    """Hardware of many stations, for statistics."""
    angle = torch.linspace(0.0, 6.0, count)
    place = torch.stack([20 * angle.cos(), 20 * angle.sin(), 5 + 0 * angle], -1).tolist()
    deployment = build_deployment(place, arrays.upa(4, 4), PLAIN.deployment.pilot_freq, 28e9, 1e-9, target=[0, 0, 1])
    return deployment, draw_hardware(Impairments(**sizes), deployment, 7)


def test_each_kind_is_a_configuration():
    folder = Path(conf_dir()) / "impairments"
    assert {path.stem for path in folder.glob("*.yaml")} == {"none", *ONE}
    for kind, sizes in ONE.items():
        written = OmegaConf.to_container(OmegaConf.load(folder / f"{kind}.yaml"))
        assert {key: value for key, value in written.items() if key != "defaults"} == sizes


@pytest.mark.parametrize("kind", [*ONE, "all"])
def test_severity_zero_is_no_impairment_bit_for_bit_and_severity_one_is_one(kind):
    sizes = ALL if kind == "all" else ONE[kind]
    plain = PLAIN.examples("val", [4, 2])
    neutral = impaired(severity=0.0, **sizes).examples("val", [4, 2])
    harmed = impaired(**sizes).examples("val", [4, 2])
    for a, b in ((plain.observation.y, neutral.observation.y), (plain.channel, neutral.channel)):
        assert torch.equal(a, b)
    assert all(torch.equal(a, b) for a, b in zip(plain.scene, neutral.scene, strict=True))
    assert torch.equal(plain.observation.noise_var, neutral.true_noise_var)
    assert not torch.equal(plain.observation.y, harmed.observation.y)
    assert torch.equal(plain.scene.ue_position, harmed.scene.ue_position)


@pytest.mark.parametrize("kind", ONE)
def test_a_scene_does_not_depend_on_its_batch(kind):
    simulator = impaired(**ONE[kind])
    together, alone = simulator.examples("test", range(5)), simulator.examples("test", [3])
    torch.testing.assert_close(together.observation.y[3:4], alone.observation.y, rtol=0, atol=1e-12)


def test_training_sees_what_the_simulator_makes():
    simulator = impaired(**ALL)
    data = SceneDataModule(simulator, detected_every=0)
    draw = next(iter(data.val_dataloader()))
    task = data.task(draw, "val")
    wanted = simulator.examples("val", draw.index.tolist(), draw.snr_db)
    torch.testing.assert_close(task.example.observation.y, wanted.observation.y)
    assert torch.equal(task.example.true_noise_var, wanted.true_noise_var)
    assert task.deployment is not simulator.true_deployment
    assert torch.equal(task.deployment.bs_position, PLAIN.deployment.bs_position)


def test_hardware_is_of_the_seed_and_scaled_by_the_severity():
    sizes = {**ONE["elements"], **ONE["stations"], **ONE["noise"], **ONE["element_positions"]}
    one, again, other = impaired(1, **sizes), impaired(1, **sizes), impaired(2, **sizes)
    assert torch.equal(one.element_gain, again.element_gain)
    assert not torch.isclose(one.element_gain, other.element_gain).any()
    double = impaired(1, severity=2.0, **sizes)
    torch.testing.assert_close(double.element_gain, one.element_gain**2)
    moved = [each.true_deployment.bs_position - PLAIN.deployment.bs_position for each in (one, double)]
    torch.testing.assert_close(moved[1], 2.0 * moved[0])
    alone = impaired(1, **ONE["elements"])
    assert torch.equal(alone.element_gain, one.element_gain), "one kind of error must not change another"
    with pytest.raises(AssertionError):  # stations err independently
        torch.testing.assert_close(one.element_gain[0], one.element_gain[1])


def test_hardware_acts_on_the_one_forward_model_entry_by_entry():
    """Slow loops over paths and elements at their true places."""
    sizes = {**ONE["elements"], **ONE["stations"], **ONE["element_positions"], **ONE["coupling"]}
    simulator = impaired(3, **sizes)
    example, true = simulator.examples("val", [0]), simulator.true_deployment
    scene, (rows, columns) = example.scene, (5, 3)
    station, wavelength = 2, float(true.wavelength)
    element = (true.bs_rotation[station] @ true.antenna_local[station].mT).mT
    wave = np.zeros((len(element), columns), complex)
    for m, place in enumerate(element.numpy()):
        for point in scene.visible[0, station].nonzero()[:, 0].tolist():
            spot = scene.scatterer_position[0, point].numpy()
            to_spot = spot - true.bs_position[station].numpy()
            length = np.linalg.norm(to_spot) + np.linalg.norm(spot - scene.ue_position[0].numpy())
            delay = length / SPEED_OF_LIGHT + float(scene.clock_offset[0, station])
            steer = np.exp(2j * np.pi / wavelength * place @ to_spot / np.linalg.norm(to_spot))
            freq = true.pilot_freq[:columns].numpy()
            wave[m] += complex(scene.gain[0, station, point]) * steer * np.exp(-2j * np.pi * freq * delay)
    coupling, gain = simulator.hardware.coupling[station].numpy(), simulator.element_gain[station].numpy()
    for m in range(rows):
        wanted = gain[m] * sum(coupling[m, n] * wave[n] for n in range(len(element)))
        np.testing.assert_allclose(example.channel[0, station, m, :columns], wanted, atol=1e-9)


def test_statistics_of_element_errors():
    _, hardware = many_stations(400, gain_db=0.5, phase_deg=10.0)
    gain, count = hardware.element_gain, hardware.element_gain.numel()
    decibel, degree = 20 * gain.abs().log10(), gain.angle().rad2deg()
    for values, std in ((decibel, 0.5), (degree, 10.0)):
        assert abs(float(values.mean())) < 4 * std / math.sqrt(count)
        assert float(values.std()) == pytest.approx(std, rel=4 / math.sqrt(2 * count))
    assert abs(float(torch.corrcoef(torch.stack([decibel.flatten(), degree.flatten()]))[0, 1])) < 4 / math.sqrt(count)


def test_statistics_of_places_turns_and_noise():
    deployment, true = many_stations(
        600, station_m=0.1, station_deg=0.5, element_wavelengths=0.02, noise_db=6.0, noise_spread_db=3.0
    )
    moved = (true.deployment.bs_position - deployment.bs_position).flatten()
    elements = ((true.deployment.antenna_local - deployment.antenna_local) / deployment.wavelength).flatten()
    turn = deployment.bs_rotation.mT @ true.deployment.bs_rotation
    torch.testing.assert_close(turn @ turn.mT, torch.eye(3, dtype=turn.dtype).expand_as(turn))
    # the angle of a turn has the length of the rotation vector: E angle^2 = 3 std^2
    angle = ((turn.diagonal(dim1=-2, dim2=-1).sum(-1) - 1) / 2).clamp(-1, 1).arccos().rad2deg()
    assert float(angle.square().mean() / 3) == pytest.approx(0.25, rel=4 * math.sqrt(2 / 1800))
    noise = 10 * true.noise_factor.log10()
    for values, mean, std in ((moved, 0, 0.1), (elements, 0, 0.02), (noise, 6.0, 3.0)):
        assert float(values.mean()) == pytest.approx(mean, abs=4 * std / math.sqrt(values.numel()))
        assert float(values.std()) == pytest.approx(std, rel=4 / math.sqrt(2 * values.numel()))


def test_coupling_is_reciprocal_and_falls_with_distance():
    deployment, hardware = many_stations(5, coupling=0.1)
    coupling, spot = hardware.coupling, deployment.antenna_local / deployment.wavelength
    torch.testing.assert_close(coupling, coupling.mT)
    for m, n in ((0, 1), (0, 2), (0, 5), (3, 12)):
        distance = float((spot[m] - spot[n]).norm())
        torch.testing.assert_close(coupling[:, m, n].abs(), torch.full((5,), 0.05 / distance, dtype=torch.float64))
        # the same phase reference in a station, turning with the distance
        turned = coupling[:, m, n] * np.exp(2j * np.pi * (distance - 0.5))
        torch.testing.assert_close((turned / turned.abs()), coupling[:, 0, 1] / coupling[:, 0, 1].abs())
    torch.testing.assert_close(coupling.diagonal(dim1=1, dim2=2).real, torch.ones(5, 16, dtype=torch.float64))
    twice = build_deployment([[0, 0, 0]], arrays.elements([[0, 0, 0]] * 2), deployment.pilot_freq, 1e9, 1e-9, [9, 9, 9])
    with pytest.raises(ConfigError, match="different places"):
        draw_hardware(Impairments(coupling=0.1), twice, 0)


def test_noise_is_told_wrong_and_observed_right():
    simulator = impaired(**ONE["noise"])
    example = simulator.examples("val", range(3), 0.0)
    noise = (example.observation.y - example.channel).abs().square().mean((-2, -1))
    torch.testing.assert_close(noise, example.true_noise_var, rtol=0.1, atol=0.0)
    torch.testing.assert_close(example.observation.noise_var, noise_variance(example.channel, 0.0))
    ratio = example.true_noise_var / example.observation.noise_var
    torch.testing.assert_close(ratio, simulator.hardware.noise_factor.expand_as(ratio))


def test_clocks_are_further_apart_and_gains_have_heavier_tails():
    plain = PLAIN.scenes("train", range(200))
    scene = impaired(**ONE["clocks"], **ONE["gains"]).scenes("train", range(200))
    torch.testing.assert_close(scene.clock_offset, 4.0 * plain.clock_offset)
    level = 20 * (scene.gain.abs() / plain.gain.abs()).log10()
    count = level.numel()
    # E power = 1 sets the mean of the level at -ln(10) / 20 variance
    assert float(level.mean()) == pytest.approx(-math.log(10) / 20 * 64, abs=4 * 8 / math.sqrt(count))
    assert float(level.std()) == pytest.approx(8.0, rel=4 / math.sqrt(2 * count))
    torch.testing.assert_close(scene.gain / scene.gain.abs(), plain.gain / plain.gain.abs())


def test_diffuse_tail_has_its_covariance_and_starts_with_the_earliest_path():
    simulator = impaired(**ONE["diffuse"])
    indices, pilots = range(24), PLAIN.deployment.pilot_freq
    scene = simulator.scenes("train", indices)
    paths = scene_paths(scene, PLAIN.deployment)
    specular = channel_response(paths, PLAIN.deployment)
    tail = simulator.channel(scene, "train", indices) - specular
    power = specular.abs().square().mean((-2, -1), keepdim=True)
    onset = torch.where(paths.mask, paths.delay, 1.0).amin(-1)
    turned = tail / power.sqrt() * torch.exp(2j * math.pi * pilots * onset[..., None, None])
    rows = turned.flatten(0, 2)
    found = rows.mT @ rows.conj() / len(rows)
    # quadrature of the delay profile, with the integrand's own grid
    r = torch.linspace(0.0, 600.0, 120_001, dtype=torch.float64)
    profile = 0.1 * torch.exp(-r / 15.0) / 15.0
    wave = torch.exp(-2j * math.pi / SPEED_OF_LIGHT * (pilots - pilots[0])[:, None] * r)
    first_column = torch.trapezoid(profile * wave, r)
    torch.testing.assert_close(0.1 * ofdm.profile_covariance(15.0, pilots)[:, 0], first_column, rtol=0, atol=1e-6)
    assert float((found[:, 0] - first_column).abs().max()) < 5 * 0.1 / math.sqrt(len(rows))
    across = (turned[..., 1:, :] * turned[..., :-1, :].conj()).mean()
    assert abs(complex(across)) < 5 * 0.1 / math.sqrt(len(rows)), "antennas must be uncorrelated"


def test_diffuse_tail_of_a_station_that_sees_nothing_is_zero():
    simulator = impaired(**ONE["diffuse"])
    scene = simulator.scenes("train", [0])
    scene.visible[0, 1] = False
    paths = scene_paths(scene, PLAIN.deployment)
    specular = channel_response(paths, PLAIN.deployment)
    tail = diffuse_tail(specular, paths, simulator.impairments, PLAIN.deployment, Draws(0, "train", [0]))
    assert torch.isfinite(tail.abs()).all()
    assert float(tail[0, 1].abs().max()) == 0.0


def test_double_bounces_go_over_two_scatterers():
    simulator = impaired(**ONE["multi_bounce"])
    indices = range(30)
    scene = simulator.scenes("train", indices)
    extra = simulator.channel(scene, "train", indices) - PLAIN.channel(scene, "train", indices)
    power = extra.abs().square().mean((-2, -1))
    # every visible scatterer carries one, of mean power 0.316^2
    share = power.sum() / scene.visible.sum()
    assert float(share) == pytest.approx(0.316**2, rel=4 / math.sqrt(int(scene.visible.sum())))
    # brute force: the best of all pairs explains the response of a scene with one visible scatterer
    scene = scene._replace(visible=torch.zeros_like(scene.visible))
    scene.visible[0, 1, 2] = True
    extra = (simulator.channel(scene, "train", indices) - PLAIN.channel(scene, "train", indices))[0, 1]
    bs, place = PLAIN.deployment.bs_position[1], scene.scatterer_position[0]
    response = arrays.response(
        ((place[2] - bs) / (place[2] - bs).norm())[None, None],
        PLAIN.deployment.antenna_global[1:2],
        PLAIN.deployment.wavelength,
    )[0]
    shares = []
    for first in range(len(place)):
        if first == 2:
            continue
        legs = [scene.ue_position[0], place[first], place[2], bs]
        length = sum(float((b - a).norm()) for a, b in itertools.pairwise(legs))
        delay = length / SPEED_OF_LIGHT + scene.clock_offset[0, 1]
        model = response * torch.exp(-2j * math.pi * PLAIN.deployment.pilot_freq * delay)
        shares.append(float((model.conj() * extra).sum().abs() / model.norm() / extra.norm()))
    assert max(shares) == pytest.approx(1.0, abs=1e-9)


def test_reflection_points_of_extended_scatterers():
    """Each station sees the single bounce of a point near the scatterer: found by solving for it."""
    simulator, indices = impaired(**ONE["extent"]), range(100)
    scene = simulator.scenes("train", indices)
    draws = Draws(0, "train", indices).normal("extent", *scene.visible.shape[1:], 3)
    assert float(draws.std()) == pytest.approx(1.0, rel=4 / math.sqrt(2 * draws.numel()))
    station = 3
    seen_by_one = torch.zeros_like(scene.visible)
    seen_by_one[:, station] = scene.visible[:, station]
    moved = scene._replace(visible=seen_by_one, scatterer_position=scene.scatterer_position + 0.3 * draws[:, station])
    wanted = PLAIN.channel(moved, "train", indices)[:, station]
    torch.testing.assert_close(simulator.channel(scene, "train", indices)[:, station], wanted, rtol=0, atol=1e-9)


def test_visibility_keeps_its_share_and_is_alike_for_neighbours():
    simulator, indices = impaired(**ONE["visibility"]), range(400)
    scene, plain = simulator.scenes("train", indices), PLAIN.scenes("train", indices)
    assert torch.equal(scene.visible[..., 6:], plain.visible[..., 6:]), "a station's own scatterers stay its own"
    seen, place = scene.visible[..., :6], scene.scatterer_position[:, :6]
    share = float(seen.double().mean())
    assert share == pytest.approx(0.8, abs=0.03)
    distance = (place[:, :, None] - place[:, None]).norm(dim=-1)
    pair = torch.triu(torch.ones(6, 6, dtype=torch.bool), 1)
    alike = (seen[..., :, None] == seen[..., None, :]).double().mean(1)
    near, far = (alike[choice & pair].mean() for choice in (distance < 6.0, distance > 40.0))
    independent = share**2 + (1 - share) ** 2
    # bivariate normal quadrant at distance d: simulated apart from the code, as P(both below the same quantile)
    rng = np.random.default_rng(0)
    z = rng.standard_normal((2, 200_000))
    rho = np.exp(-(distance[(distance < 6.0) & pair].numpy() ** 2) / (2 * 15.0**2)).mean()
    below = (z[0] < 0.8416) == (rho * z[0] + math.sqrt(1 - rho**2) * z[1] < 0.8416)
    assert float(near) == pytest.approx(below.mean(), abs=0.03)
    assert float(far) == pytest.approx(independent, abs=0.05)


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"gain_db": -1.0}, "gain_db must be >= 0"),
        ({"clock_factor": 0.0}, "clock_factor must be > 0"),
        ({"severity": math.inf}, "severity must be a finite number"),
        ({"diffuse": "much"}, "diffuse must be a finite number"),
        ({"diffuse_decay_m": 0.0}, "diffuse_decay_m must be > 0"),
        ({"noise_db": True}, "noise_db must be a finite number"),
    ],
)
def test_bad_sizes_are_refused(sizes, words):
    with pytest.raises(ConfigError, match=f"impairments.{words}"):
        Impairments(**sizes)
    assert Impairments(noise_db=-3.0).scaled().noise_db == -3.0
