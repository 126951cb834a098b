"""Map of one scene: stations, scatterers and user as they are and as they were estimated."""

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, Rectangle
from torch import Tensor

from sensing.containers import Estimate
from sensing.evaluation.result import SceneSketch
from sensing.evaluation.style import legend_below, marks, panels
from sensing.evaluation.summary import snr_label

MOST = 4  # estimators on the map, the first ones: more cannot be told apart
CHI2_95 = 5.9915  # 95 % quantile of the chi-square distribution with 2 degrees of freedom


def scene_map(sketch: SceneSketch) -> Figure:
    """Plan of the scene, and beside it the surroundings of the user, magnified until the ellipses can be seen.

    Args:
        sketch: scene and estimates.

    Returns:
        The figure.
    """
    figure, axes = panels(2, width=6.0, height=5.6)
    names = [name for name, estimate in sketch.estimates.items() if estimate.ue_position is not None][:MOST]
    for each in axes:
        _truth(each, sketch)
        for name in names:
            _estimate(each, sketch.estimates[name], name, marks(name, list(sketch.estimates))[0])
        each.set_aspect("equal", adjustable="box")
        each.set(xlabel="x [m]", ylabel="y [m]")
    _whole(axes[0], sketch)
    _close_up(axes[1], sketch, names)
    axes[0].set_title(f"scene {sketch.index}{sketch.remark}, SNR {snr_label(sketch.snr_db)}")
    axes[1].set_title("around the user, 95 % ellipses")
    legend_below(figure, axes[:1])
    return figure


def _truth(axes: Axes, sketch: SceneSketch) -> None:
    plan, scene = sketch.deployment, sketch.scene
    if plan.region is not None:
        low, high = plan.region[:, :2].numpy()
        axes.add_patch(Rectangle(low, *(high - low), fill=False, edgecolor="#999999", linewidth=1.2, label="region"))
    bs, boresight = plan.bs_position[:, :2].numpy(), plan.boresight[:, :2].numpy()
    axes.quiver(*bs.T, *boresight.T, color="#444444", width=0.004, scale=14, zorder=2)
    axes.plot(*bs.T, "s", color="black", markersize=8, label="station", zorder=4)
    if scene is None:
        return
    views = scene.visible.sum(0)
    points = scene.scatterer_position[:, :2]
    for part, face, label in (
        (views >= 2, "#bbbbbb", "scatterer, shared"),
        (views == 1, "none", "scatterer, one station"),
    ):
        if bool(part.any()):
            axes.plot(*points[part].numpy().T, "o", color="#555555", markerfacecolor=face, markersize=8, label=label)
    if not bool(scene.ue_position.isnan().any()):
        axes.plot(*scene.ue_position[:2, None].numpy(), "*", color="black", markersize=15, label="user", zorder=5)


def _estimate(axes: Axes, estimate: Estimate, name: str, color: str) -> None:
    assert estimate.ue_position is not None
    user = estimate.ue_position[:2].numpy()
    axes.plot(*user[:, None], "+", color=color, markersize=13, markeredgewidth=2.2, label=f"{name}: user", zorder=6)
    if estimate.covariance is not None:
        ellipse(axes, user, estimate.covariance[:2, :2], color)
    if estimate.scatterer_position is not None:
        nodes = estimate.scatterer_position[:, :2]
        mask = torch.ones(len(nodes), dtype=torch.bool) if estimate.scatterer_mask is None else estimate.scatterer_mask
        if bool(mask.any()):
            axes.plot(
                *nodes[mask].numpy().T, "x", color=color, markersize=6, alpha=0.8, label=f"{name}: scatterers", zorder=5
            )


def ellipse(axes: Axes, centre: np.ndarray, covariance: Tensor, color: str) -> None:
    """95 % ellipse of a plane Gaussian; none where the covariance is not finite."""
    if not bool(torch.isfinite(covariance).all()):
        return
    variance, vectors = np.linalg.eigh(covariance.double().numpy())
    width, height = 2.0 * np.sqrt(CHI2_95 * np.maximum(variance, 0.0))
    angle = float(np.degrees(np.arctan2(vectors[1, 0], vectors[0, 0])))
    axes.add_patch(
        Ellipse((centre[0], centre[1]), width, height, angle=angle, fill=False, edgecolor=color, linewidth=1.6)
    )


def _whole(axes: Axes, sketch: SceneSketch) -> None:
    """Limits around stations, true points and region, so that an estimate far outside does not shrink the plan."""
    parts = [sketch.deployment.bs_position]
    if sketch.deployment.region is not None:
        parts.append(sketch.deployment.region)
    if sketch.scene is not None:
        parts += [sketch.scene.scatterer_position[sketch.scene.visible.any(0)], sketch.scene.ue_position[None]]
    points = torch.cat(parts)[:, :2].numpy()
    low, high = np.nanmin(points, 0), np.nanmax(points, 0)
    margin = 0.06 * float(np.max(high - low))
    axes.set(xlim=(low[0] - margin, high[0] + margin), ylim=(low[1] - margin, high[1] + margin))


def _close_up(axes: Axes, sketch: SceneSketch, names: list[str]) -> None:
    """Limits around the user: wide enough for estimates and ellipses within 10 m, or else for the nearest estimate."""
    known = sketch.scene is not None and not bool(sketch.scene.ue_position.isnan().any())
    users = {name: sketch.estimates[name].ue_position for name in names}
    found = {name: user[:2] for name, user in users.items() if user is not None and bool(torch.isfinite(user).all())}
    if not found:
        axes.set_visible(False)
        return
    centre = torch.stack(list(found.values())).median(0).values
    if known:
        assert sketch.scene is not None
        centre = sketch.scene.ue_position[:2]
    distance = {name: float((user - centre).norm()) for name, user in found.items()}
    reach = [0.02, min(distance.values())]
    for name, far in distance.items():
        covariance = sketch.estimates[name].covariance
        spread = 0.0 if covariance is None else float((CHI2_95 * covariance[:2, :2].diagonal().max()).sqrt())
        reach += [size for size in (far, far + spread) if size <= 10.0]
    half = 1.15 * max(reach)
    x, y = centre.tolist()
    axes.set(xlim=(x - half, x + half), ylim=(y - half, y + half))
