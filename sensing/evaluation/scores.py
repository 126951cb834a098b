"""Per-scene figures of merit of an estimate, and the bound in the same quantities.

Quantities: `ue_error_m`; `scatterer_error_m`, rms over the scatterers that two or more stations see (the cutoff for a
missed one), and `scatterer_specific_error_m`, over those that one alone sees; `clock_offset_error_s`, rms over
stations; `channel_nmse_db` over pilots; `gospa_m` of the visible scatterers (order 2); `flags`, bits of
`sensing.containers.Flag`; `fallback`, one where the classical iterations redid the scene; `near`, one where it had no
need of learned layers. How far the claimed covariance can be believed: `nees_user` and `nees_common` (user and clock
offsets), the normalised squared error per degree of freedom, 1 on average if the covariance is right; for each kind of
scatterers, shared and specific, `shared_located`, how many have an estimate nearer than the cutoff, and
`shared_inside_90`, how many of these lie in the claimed 90 % ellipsoid. A quantity is absent where the estimator or the
truth does not give it.
"""

import torch
from scipy.stats import chi2
from torch import Tensor

from sensing.baselines import synchronous
from sensing.bounds import uplink_bound
from sensing.containers import Deployment, Estimate, Example, Scene
from sensing.metrics import (
    clock_offset_error,
    gospa,
    match_scatterers,
    nees,
    nmse_db,
    of_matched,
    position_error,
    scatterer_error,
    wrapped,
)
from sensing.units import SPEED_OF_LIGHT

CUTOFF_M = 2.0
LEVELS = (50, 90, 99)
"""Ellipsoids whose coverage is measured [%]."""
KINDS = {"shared": "scatterer_error_m", "specific": "scatterer_specific_error_m"}


def inside(nees_per_dof: Tensor, dof: int, level: int) -> Tensor:
    """Whether an error lies in the ellipsoid of a level [%]; false where the covariance is none."""
    return nees_per_dof < chi2.ppf(level / 100, dof) / dof


def score(
    estimate: Estimate, example: Example, deployment: Deployment, cutoff_m: float = CUTOFF_M
) -> dict[str, Tensor]:
    """Score a batch of estimates against the truth.

    Args:
        estimate: batch [scene].
        example: the same batch; `scene` and `channel` may be None, their user and offsets NaN.
        deployment: gives the ambiguity of the delays.
        cutoff_m: distance at which a scatterer counts as missed [m].

    Returns:
        Quantity to [scene].
    """
    scores: dict[str, Tensor] = {}
    if estimate.flags is not None:
        scores["flags"] = estimate.flags
    if estimate.fallback is not None:
        scores["fallback"] = estimate.fallback
    if estimate.near is not None:
        scores["near"] = estimate.near
    if example.channel is not None:
        scores["channel_nmse_db"] = nmse_db(estimate.channel, example.channel)
    scene = example.scene
    if scene is None:
        return scores
    if estimate.ue_position is not None and not bool(scene.ue_position.isnan().all()):
        scores["ue_error_m"] = position_error(estimate.ue_position, scene.ue_position)
        if estimate.covariance is not None:
            error = estimate.ue_position - scene.ue_position
            scores["nees_user"] = nees(error, estimate.covariance[..., :3, :3]) / 3
    # an estimator that knows the offsets, or has none, tells nothing about them by returning them
    if (
        estimate.ue_position is not None
        and estimate.clock_offset is not None
        and not bool(scene.clock_offset.isnan().all())
    ):
        period = 1.0 / deployment.pilot_spacing
        scores["clock_offset_error_s"] = clock_offset_error(estimate.clock_offset, scene.clock_offset, period)
        if "nees_user" in scores and estimate.covariance is not None:
            offset_m = SPEED_OF_LIGHT * wrapped(estimate.clock_offset - scene.clock_offset, period)
            both = torch.cat([estimate.ue_position - scene.ue_position, offset_m], -1)
            scores["nees_common"] = nees(both, estimate.covariance) / both.shape[-1]
    if estimate.scatterer_position is not None and scene.scatterer_position.shape[-2] > 0:
        scores |= _scatterer_scores(estimate, scene, cutoff_m)
    return scores


def _scatterer_scores(estimate: Estimate, scene: Scene, cutoff_m: float) -> dict[str, Tensor]:
    nodes, true, views = estimate.scatterer_position, scene.scatterer_position, scene.visible.sum(-2)
    assert nodes is not None
    mask = estimate.scatterer_mask
    mask = torch.ones_like(nodes[..., 0], dtype=torch.bool) if mask is None else mask
    scores = {"gospa_m": gospa(nodes, mask, true, views > 0, cutoff_m)}
    index = match_scatterers(nodes, mask, true, scene.visible, cutoff_m)
    error = of_matched(index, nodes) - true
    for kind, quantity in KINDS.items():
        scores[quantity] = scatterer_error(error, scene.visible, cutoff_m, which=kind)
    if estimate.scatterer_covariance is not None:
        ratio = nees(error, of_matched(index, estimate.scatterer_covariance)) / 3
        for kind, chosen in (("shared", views >= 2), ("specific", views == 1)):
            chosen = chosen & (index >= 0)
            scores[f"{kind}_located"] = chosen.sum(-1)
            for level in LEVELS:
                scores[f"{kind}_inside_{level}"] = (chosen & inside(ratio, 3, level)).sum(-1)
    return scores


def bound_scores(example: Example, deployment: Deployment) -> dict[str, dict[str, Tensor]]:
    """Bounds of a batch: `peb` and, with the offsets known, `peb_sync`; empty where the truth has no gains.

    Args:
        example: batch [scene].
        deployment: the stations and priors.

    Returns:
        Bound to quantity to [scene], with scatterers and offsets combined as their errors are in `score`.
    """
    scene = example.scene
    if scene is None or scene.gain is None:
        return {}
    bounds = {}
    views = scene.visible.sum(-2)
    for name, plan in (("peb", deployment), ("peb_sync", synchronous(deployment))):
        bound = uplink_bound(scene, example.true_noise_var, plan)
        bounds[name] = {
            "ue_error_m": bound.ue_position_m,
            "clock_offset_error_s": bound.clock_offset_s.square().mean(-1).sqrt(),
        }
        for kind, chosen in (("shared", views >= 2), ("specific", views == 1)):
            point = torch.where(chosen, bound.scatterer_m, torch.nan)
            bounds[name][KINDS[kind]] = point.square().nanmean(-1).sqrt()
    return bounds
