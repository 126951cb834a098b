"""Scenes for training: the same for any number of workers and batch size, fresh every epoch."""

import math

import pytest
import torch
from torch.utils.data import default_collate

from sensing.bounds import uplink_bound
from sensing.data.loading import FreshSampler
from sensing.data.scenes import SceneDataModule, SceneDataset
from sensing.errors import ConfigError


def same(a, b):
    if a is None or b is None:
        return a is b
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else all(map(same, a, b))


def module(tiny, **settings):
    return SceneDataModule(tiny.simulator, **({"batch_size": 2, "scenes_per_epoch": 4, "detected_every": 2} | settings))


def by_scene(batches):
    return {int(i): [batch, n] for batch in batches for n, i in enumerate(batch.index)}


@pytest.fixture(scope="module")
def dataset(tiny):
    return SceneDataset(tiny.simulator, "train", [0.0, 20.0], 6)


def test_scene_does_not_depend_on_workers_or_batch_size(tiny, dataset):
    expected = [dataset[i] for i in range(6)]
    for workers, size in ((0, 1), (0, 4), (2, 2), (2, 3)):
        data = module(tiny, num_workers=workers, batch_size=size, scenes_per_epoch=6, snr_db=[0.0, 20.0])
        seen = by_scene(list(data.train_dataloader()))
        assert sorted(seen) == list(range(6))
        for i, (batch, n) in seen.items():
            assert torch.equal(batch.noise[n], expected[i].noise)
            assert torch.equal(batch.snr_db[n], expected[i].snr_db)
            assert same([field[n] for field in batch.scene], list(expected[i].scene))


def test_draws_equal_the_simulator(tiny, dataset):
    draw = dataset[3]
    example = tiny.simulator.examples("train", [3], snr_db=draw.snr_db)
    task = module(tiny, detected_every=0).task(default_collate([draw]), "train")
    assert torch.equal(task.example.observation.y, example.observation.y)
    assert torch.equal(task.example.channel, example.channel)
    bound = uplink_bound(example.scene, example.observation.noise_var, tiny.deployment)
    assert torch.equal(task.peb, bound.ue_position_m)


def test_draw_collates_and_splits_differ(tiny, dataset):
    batch = default_collate([dataset[0], dataset[1]])
    assert type(batch).__name__ == "Draw"
    assert type(batch.scene).__name__ == "Scene"
    assert batch.noise.shape == (2, 3, 12, 10)
    assert batch.noise.dtype == torch.complex128
    assert batch.index.tolist() == [0, 1]
    other = SceneDataset(tiny.simulator, "val", [10.0], 2)[0]
    assert not torch.equal(other.scene.ue_position, dataset[0].scene.ue_position)
    assert float(other.snr_db) == 10.0


def test_snr_is_uniform_in_its_interval(tiny):
    data = SceneDataset(tiny.simulator, "train", [-5.0, 15.0], 1)
    values = torch.stack([data[i].snr_db for i in range(200)])
    assert values.min() >= -5.0
    assert values.max() <= 15.0
    assert abs(float(values.mean()) - 5.0) < 4 * 20 / 12**0.5 / 200**0.5


def test_every_epoch_is_fresh_and_ranks_share_it():
    sampler = FreshSampler(4)
    epochs = []
    for epoch in range(3):
        sampler.set_epoch(epoch)
        epochs.append(list(sampler))
    assert epochs == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    resumed = FreshSampler(4)
    resumed.set_epoch(2)
    assert list(resumed) == epochs[2]
    for world, length in ((2, 6), (3, 7)):
        ranks = [FreshSampler(length, rank, world) for rank in range(world)]
        for sampler in ranks:
            sampler.set_epoch(1)
        shares = [list(sampler) for sampler in ranks]
        assert {len(share) for share in shares} == {length // world} == {len(sampler) for sampler in ranks}
        together = [i for share in shares for i in share]
        assert len(set(together)) == len(together)
        assert all(length <= i < 2 * length for i in together)


def test_starts_and_batches_from_the_front_end_alternate(tiny):
    data = module(tiny)
    batches = list(data.train_dataloader())
    assert [data.task(batch, "train").start is None for batch in batches] == [False, True]
    assert all(data.task(batch, "val").start is not None for batch in data.val_dataloader())
    never = module(tiny, detected_every=0)
    assert all(never.task(batch, "train").start is not None for batch in batches)


def test_a_start_depends_on_its_scene_alone(tiny, dataset):
    data = module(tiny, detected_every=0)
    pair = data.task(default_collate([dataset[0], dataset[5]]), "train")
    alone = data.task(default_collate([dataset[5]]), "train")
    assert torch.allclose(pair.start.ue_position[1], alone.start.ue_position[0], atol=1e-12)
    assert torch.allclose(pair.start.offset_m[1], alone.start.offset_m[0], atol=1e-12)
    nodes = alone.start.node_mask.sum()
    assert pair.start.node_mask[1].sum() == nodes
    assert torch.allclose(pair.start.node_position[1, :nodes], alone.start.node_position[0, :nodes], atol=1e-12)


def test_validation_is_the_same_every_time(tiny):
    data = module(tiny, val_scenes=3, test_scenes=2)
    first, second = (list(data.val_dataloader()) for _ in range(2))
    assert same([list(batch) for batch in first], [list(batch) for batch in second])
    assert len(list(data.test_dataloader())) == 1
    for batch in first:
        assert same(data.task(batch, "val").start, data.task(batch, "val").start)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"batch_size": 0}, r"data\.batch_size"),
        ({"scenes_per_epoch": 0}, r"data\.scenes_per_epoch"),
        ({"val_scenes": 0}, r"data\.val_scenes"),
        ({"snr_db": [20.0, 0.0]}, r"data\.snr_db"),
        ({"amplitude": [-1.0, 2.0]}, r"data\.amplitude"),
        ({"detected_every": -1}, "detected_every"),
        ({"num_workers": -1}, "num_workers"),
    ],
)
def test_impossible_settings_are_errors(tiny, settings, message):
    with pytest.raises(ConfigError, match=message):
        module(tiny, **settings)


def test_distinct_scenes_repeat_with_other_starts_and_keep_the_schedule(tiny):
    """Three scenes: number 4 has the observation of scene 1; every second batch still starts from detection."""
    data = module(tiny, num_train_scenes=3, scenes_per_epoch=8)
    fresh = module(tiny, scenes_per_epoch=8)
    tasks = [data.task(draw, "train") for draw in data.train_dataloader()]
    plain = [fresh.task(draw, "train") for draw in fresh.train_dataloader()]
    y, wanted = (torch.cat([task.example.observation.y for task in each]) for each in (tasks, plain))
    assert torch.equal(y, wanted[[0, 1, 2, 0, 1, 2, 0, 1]])
    assert [task.start is None for task in tasks] == [task.start is None for task in plain] == [False, True] * 2
    assert torch.cat([task.index for task in tasks]).tolist() == [0, 1, 2, 0, 1, 2, 0, 1]
    assert not torch.equal(tasks[0].start.ue_position[1], tasks[2].start.ue_position[0])  # numbers 1 and 4
    assert same(tasks[0].start, plain[0].start)
    held = [module(tiny, num_train_scenes=count).datasets["val"][0] for count in (3, None)]
    assert same(*held)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"val_snr_db": math.nan}, r"data\.val_snr_db must be finite, got"),
        ({"snr_db": (5.0, math.inf)}, r"data\.snr_db must be finite, got"),
        ({"val_amplitude": math.nan}, r"data\.val_amplitude must be finite and >= 0"),
        ({"test_amplitude": -5.0}, r"data\.test_amplitude must be finite and >= 0"),
        ({"curriculum": 0.5}, r"data\.curriculum must be a whole number >= 0, got 0\.5"),
        ({"num_train_scenes": 1.5}, r"data\.num_train_scenes must be a whole number >= 1"),
    ],
)
def test_numbers_that_do_not_fit(tiny, given, message):
    with pytest.raises(ConfigError, match=message):
        SceneDataModule(tiny.simulator, **given)
