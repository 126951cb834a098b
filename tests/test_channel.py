"""The forward model against a loop over station, antenna, subcarrier and path."""

import pytest
import torch

from sensing.channel import channel_response, scene_paths
from sensing.containers import Scene
from sensing.errors import DomainError
from tests.reference import slow


def test_channel_equals_a_loop(tiny):
    scene = tiny.simulator.scenes("train", range(3))
    got = channel_response(scene_paths(scene, tiny.deployment), tiny.deployment)
    assert got.shape == (3, 3, 12, 10)
    assert got.dtype == torch.complex128
    for i in range(3):
        wanted = slow.channel(Scene(*(field[i] for field in scene)), tiny.deployment)
        assert (got[i] - wanted).abs().max() < 1e-10 * wanted.abs().max()


def test_single_precision_differs_only_by_rounding_of_the_result(hall):
    """Phases are formed in double, so a path of many wavelengths keeps its phase in complex64."""
    paths = scene_paths(hall.simulator.scenes("train", range(2)), hall.deployment)
    double = channel_response(paths, hall.deployment)
    single = channel_response(paths, hall.deployment, torch.complex64)
    assert single.dtype == torch.complex64
    assert (single - double).abs().max() < 1e-5 * double.abs().max()


def test_delays_include_the_offset_and_paths_without_batch_axis_work(tiny):
    scene = tiny.simulator.scenes("train", range(2))
    late = scene._replace(clock_offset=scene.clock_offset + 5e-9)
    delay = scene_paths(scene, tiny.deployment).delay
    assert torch.allclose(scene_paths(late, tiny.deployment).delay - delay, torch.full_like(delay, 5e-9), rtol=1e-6)
    single = Scene(*(field[1] for field in scene))
    assert torch.allclose(scene_paths(single, tiny.deployment).delay, delay[1])


def test_invisible_paths_do_not_matter(tiny):
    scene = tiny.simulator.scenes("train", range(1))
    clean = channel_response(scene_paths(scene, tiny.deployment), tiny.deployment)
    louder = scene._replace(gain=torch.where(scene.visible, scene.gain, 1e9 * scene.gain))
    assert torch.equal(channel_response(scene_paths(louder, tiny.deployment), tiny.deployment), clean)


def test_scene_without_gains_is_refused(tiny):
    scene = tiny.simulator.scenes("train", range(1))._replace(gain=None)
    with pytest.raises(DomainError, match=r"scene\.gain"):
        scene_paths(scene, tiny.deployment)
