"""Per-scene figures of merit of an estimate, and the bound in the same quantities.

Quantities: `ue_error_m`; `scatterer_error_m`, rms over the scatterers that two or more stations see (2 m for a missed
one); `clock_offset_error_s`, rms over stations; `channel_nmse_db` over pilots; `gospa_m` of the visible scatterers
(cutoff 2 m, order 2); `covered`, 1 if the user is inside the 95 % ellipsoid of the claimed covariance; `flags`, bits of
`sensing.containers.Flag`. A quantity is absent where the estimator or the truth does not give it.
"""

import torch
from torch import Tensor

from sensing.baselines import synchronous
from sensing.bounds import uplink_bound
from sensing.containers import Deployment, Estimate, Example
from sensing.metrics import clock_offset_error, gospa, nmse_db, position_error, scatterer_error

CUTOFF_M = 2.0
CHI2_95 = 7.8147  # 95 % quantile of the chi-square distribution with 3 degrees of freedom


def score(estimate: Estimate, example: Example, deployment: Deployment) -> dict[str, Tensor]:
    """Score a batch of estimates against the truth.

    Args:
        estimate: batch [scene].
        example: the same batch; `scene` and `channel` may be None, their user and offsets NaN.
        deployment: gives the ambiguity of the delays.

    Returns:
        Quantity to [scene].
    """
    scores: dict[str, Tensor] = {}
    if estimate.flags is not None:
        scores["flags"] = estimate.flags
    if example.channel is not None:
        scores["channel_nmse_db"] = nmse_db(estimate.channel, example.channel)
    scene = example.scene
    if scene is None:
        return scores
    if estimate.ue_position is not None and not bool(scene.ue_position.isnan().all()):
        error = estimate.ue_position - scene.ue_position
        scores["ue_error_m"] = position_error(estimate.ue_position, scene.ue_position)
        if estimate.covariance is not None:
            scores["covered"] = _covered(error, estimate.covariance[..., :3, :3])
    # an estimator that knows the offsets, or has none, tells nothing about them by returning them
    if (
        estimate.ue_position is not None
        and estimate.clock_offset is not None
        and not bool(scene.clock_offset.isnan().all())
    ):
        scores["clock_offset_error_s"] = clock_offset_error(
            estimate.clock_offset, scene.clock_offset, 1.0 / deployment.pilot_spacing
        )
    nodes, mask = estimate.scatterer_position, estimate.scatterer_mask
    if nodes is not None and scene.scatterer_position.shape[-2] > 0:
        mask = torch.ones_like(nodes[..., 0], dtype=torch.bool) if mask is None else mask
        seen = scene.visible.any(-2)
        scores["gospa_m"] = gospa(nodes, mask, scene.scatterer_position, seen, CUTOFF_M)
        scores["scatterer_error_m"] = scatterer_error(nodes, mask, scene.scatterer_position, scene.visible, CUTOFF_M)
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
    for name, plan in (("peb", deployment), ("peb_sync", synchronous(deployment))):
        bound = uplink_bound(scene, example.observation.noise_var, plan)
        shared = scene.visible.sum(-2) >= 2
        variance = torch.where(shared, bound.scatterer_m.square(), torch.zeros_like(bound.scatterer_m)).sum(-1)
        bounds[name] = {
            "ue_error_m": bound.ue_position_m,
            "scatterer_error_m": (variance / shared.sum(-1)).sqrt(),
            "clock_offset_error_s": bound.clock_offset_s.square().mean(-1).sqrt(),
        }
    return bounds


def _covered(error: Tensor, covariance: Tensor) -> Tensor:
    """1.0 where the error lies inside the 95 % ellipsoid; NaN where the covariance is not positive definite."""
    factor, failed = torch.linalg.cholesky_ex(covariance)
    white = torch.linalg.solve_triangular(factor, error[..., None], upper=False)[..., 0]
    inside = (white.square().sum(-1) < CHI2_95).to(error.dtype)
    return torch.where(failed == 0, inside, torch.full_like(inside, torch.nan))
