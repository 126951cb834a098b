"""One scene against marginal covariances of a factor graph: GTSAM's variables, linearisation and elimination."""

import numpy as np
import pytest
import torch

from sensing.bounds import uplink_bound
from sensing.containers import Scene
from tests.reference import slow

gtsam = pytest.importorskip("gtsam", reason="optional peer: pip install -e '.[graph]'")


def station_factor(scene, noise_var, deployment, station):
    """The pilots of one station as a factor of (user, its offset, the scatterers it sees, their gains)."""
    seen = scene.visible[station].nonzero().flatten().tolist()
    visible = torch.zeros_like(scene.visible)
    visible[station] = scene.visible[station]
    stations, points = visible.shape
    first_gain = 3 + stations + 3 * points
    place = [[0, 1, 2], [3 + station]]
    place += [[3 + stations + 3 * n + axis for axis in range(3)] for n in seen]
    place += [[first_gain + i, first_gain + len(seen) + i] for i in range(len(seen))]
    keys = [gtsam.symbol("u", 0), gtsam.symbol("o", station)]
    keys += [gtsam.symbol("s", n) for n in seen]
    keys += [gtsam.symbol("g", points * station + n) for n in seen]
    observed = slow.model(slow.parameters(scene._replace(visible=visible)), visible, deployment)[station]

    def error(_factor, values, jacobians):
        theta = torch.zeros(first_gain + 2 * len(seen), dtype=torch.float64)
        for key, columns in zip(keys, place, strict=True):
            theta[columns] = torch.from_numpy(values.atVector(key))
        if jacobians is not None:
            whole = torch.func.jacfwd(lambda t: slow.model(t, visible, deployment)[station].flatten())(theta)
            for number, columns in enumerate(place):
                jacobians[number] = np.asfortranarray(whole[:, columns].numpy())
        return (slow.model(theta, visible, deployment)[station] - observed).flatten().numpy()

    model = gtsam.noiseModel.Isotropic.Sigma(observed.numel(), float(noise_var[station] / 2) ** 0.5)
    return gtsam.CustomFactor(model, keys, error)


def test_equals_the_marginals_of_a_factor_graph(tiny):
    example = tiny.simulator.examples("test", [0], snr_db=10.0)
    bound = uplink_bound(example.scene, example.observation.noise_var, tiny.deployment)
    scene = Scene(*(field[0] for field in example.scene))
    stations, points = scene.visible.shape

    graph, values = gtsam.NonlinearFactorGraph(), gtsam.Values()
    values.insert(gtsam.symbol("u", 0), scene.ue_position.numpy())
    prior = gtsam.noiseModel.Isotropic.Sigma(1, slow.C * float(tiny.deployment.clock_offset_std))
    for q in range(stations):
        graph.add(station_factor(scene, example.observation.noise_var[0], tiny.deployment, q))
        values.insert(gtsam.symbol("o", q), slow.C * scene.clock_offset[q : q + 1].numpy())
        graph.add(gtsam.PriorFactorVector(gtsam.symbol("o", q), np.zeros(1), prior))
        for n in scene.visible[q].nonzero().flatten().tolist():
            gain = complex(scene.gain[q, n])
            values.insert(gtsam.symbol("g", points * q + n), np.array([gain.real, gain.imag]))
    for n in range(points):
        values.insert(gtsam.symbol("s", n), scene.scatterer_position[n].numpy())
    marginals = gtsam.Marginals(graph, values)

    def covariance(letter, number):
        return torch.from_numpy(marginals.marginalCovariance(gtsam.symbol(letter, number)))

    user = covariance("u", 0)
    assert torch.allclose(bound.covariance[0, :3, :3], user, rtol=1e-8, atol=1e-8 * float(user.trace()))
    assert torch.isclose(bound.ue_position_m[0], user.trace().sqrt(), rtol=1e-8)
    for q in range(stations):
        assert torch.isclose(slow.C * bound.clock_offset_s[0, q], covariance("o", q).squeeze().sqrt(), rtol=1e-8)
    for n in range(points):
        assert torch.isclose(bound.scatterer_m[0, n], covariance("s", n).trace().sqrt(), rtol=1e-8)
