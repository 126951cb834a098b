"""Memory modes of training: what each keeps between forward and backward pass, and what its gradient costs."""

from collections.abc import Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.frame import Case
from benchmarks.hall import hall
from sensing.data.scenes import SceneDataModule, Task
from sensing.inference.memory import MODES
from sensing.inference.unrolled import Refined, Unrolled

INSTALL = None


def cases(tiny: bool) -> Iterator[Case]:
    """Gradients of tied layers in every mode; those that are exact are compared with `full`."""
    scenes, layers = (1, 2) if tiny else (8, 8)
    data = SceneDataModule(hall(), batch_size=scenes, detected_every=0)
    drawn = torch.utils.data.default_collate([data.datasets["train"][i] for i in range(scenes)])
    task = data.task(drawn, "train")
    full = partial(_gradient, task, layers, "full")
    for mode in MODES:
        kept = _kept(task, layers, mode)
        exact = mode == "checkpoint"
        yield Case(
            f"gradient of {layers} layers, memory={mode}",
            f"{scenes} scenes, 4 stations, 64 antennas, 64 pilots",
            partial(_gradient, task, layers, mode),
            peer=full if exact else None,
            peer_name="memory=full" if exact else "",
            tolerance=1e-9 if exact else 0.0,
            per=(scenes, "scene"),
            note=f"keeps {kept / scenes / 1e6:.1f} MB per scene",
        )


def _forward(task: Task, layers: int, mode: str) -> tuple[Unrolled, Refined]:
    net = Unrolled(layers, guard=False, memory=mode)
    assert task.start is not None
    return net, net(task.example.observation, task.deployment, task.start, history=True)


def _gradient(task: Task, layers: int, mode: str) -> Tensor:
    net, refined = _forward(task, layers, mode)
    assert task.example.scene is not None
    (refined.final.geometry.ue_position - task.example.scene.ue_position).square().sum().backward()
    corrections = net.layers[0].corrections
    return torch.stack([p.grad for p in corrections.values() if p.grad is not None])  # type: ignore[operator,union-attr]


def _kept(task: Task, layers: int, mode: str) -> int:
    """Bytes that the graph holds when the forward pass is over."""
    held: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        kept = _forward(task, layers, mode)
    del kept
    return sum(held.values())
