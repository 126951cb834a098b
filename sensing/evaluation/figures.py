"""Figures of an evaluation: errors against SNR and their distributions, next to the bound."""

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from sensing.data.atomic import atomic_path
from sensing.evaluation.curves import against_snr, having, snr_curves
from sensing.evaluation.distributions import calibration, error_cdf, error_over_peb_cdf, flagged_cdf, nmse_cdf
from sensing.evaluation.grids import grid
from sensing.evaluation.measures import GENIE
from sensing.evaluation.result import SweepResult
from sensing.evaluation.scene_map import scene_map
from sensing.evaluation.style import log_scale, panels

CAPTIONS = {
    "error_vs_snr": "User position error against SNR with the position error bound (PEB); bars: 95 % confidence.",
    "converged_vs_snr": "Share of scenes whose error is below three times their PEB, and the share that it flags.",
    "nmse_vs_snr": "Channel error on the pilots: NMSE averaged over scenes; bars: 95 % confidence.",
    "scatterers_vs_snr": "Error of scatterers: rms within a scene, then median and rms over scenes, with the bounds. A "
    "scatterer without an estimate within the cutoff counts with the cutoff.",
    "clocks_vs_snr": "Error of the clock offsets: rms over stations, median over scenes, with the bound.",
    "coverage": "Whether the claimed covariance can be believed: share of scenes inside the claimed ellipsoid of each "
    "probability (on the diagonal if it is right), coverage of the 90 % ellipsoid, and the mean squared error in the "
    "metric of the covariance (1 if it is right; grey: 95 % band), the last over scenes that are not flagged; "
    "dashed: over all scenes, for an estimator that flags every one at some SNR.",
    "error_cdf": "Share of scenes with a user position error below the abscissa.",
    "error_over_peb_cdf": "Share of scenes whose error over their own PEB is below the abscissa; converged below 3.",
    "nmse_cdf": "Share of scenes whose channel error on the pilots (NMSE) is below the abscissa.",
    "flagged_cdf": "User position error of scenes that the estimator trusts (solid) and that it flags (dashed).",
    "scene_map": "One scene from above, and magnified around the user, with the claimed 95 % ellipses.",
    "user_rmse": "Root mean square user position error over all scenes for each deviation of the clock offsets.",
    "user_median": "Median user position error for each deviation of the clock offsets.",
    "scatterer_rmse": "Root mean square error of shared scatterers (the cutoff for a missed one).",
    "scatterer_median": "Error of shared scatterers: rms within a scene, median over scenes.",
    "nmse": "Channel error on the pilots for each deviation of the clock offsets.",
    "converged": "Share of scenes with an error below three times their PEB.",
}


def save_figures(results: Sequence[SweepResult], folder: str | Path) -> dict[str, Path]:
    """Draw every figure that the results can fill, as PNG.

    Args:
        results: the evaluation, one result for each deviation of the clock offsets.
        folder: where the files go; made if absent.

    Returns:
        Name (a key of `CAPTIONS`) to file, in the order in which to show them.
    """
    drawn = _of_several(results) if len(results) > 1 else _of_one(results[0])
    sketch = results[0].sketch
    drawn["scene_map"] = None if sketch is None else scene_map(sketch)
    files = {}
    for name, figure in drawn.items():
        if figure is not None:
            files[name] = Path(folder) / f"{name}.png"
            with atomic_path(files[name]) as temporary:
                figure.savefig(temporary, format="png")
    return files


def _of_one(result: SweepResult) -> dict[str, Figure | None]:
    sweep = len(result.snr_db) > 1
    return {
        "error_vs_snr": error_vs_snr(result) if sweep else None,
        "converged_vs_snr": converged_vs_snr(result) if sweep else None,
        "nmse_vs_snr": nmse_vs_snr(result) if sweep else None,
        "scatterers_vs_snr": scatterers_vs_snr(result) if sweep else None,
        "clocks_vs_snr": clocks_vs_snr(result) if sweep else None,
        "coverage": calibration(result),
        "error_cdf": error_cdf(result),
        "error_over_peb_cdf": error_over_peb_cdf(result),
        "nmse_cdf": None if sweep else nmse_cdf(result),
        "flagged_cdf": None if sweep else flagged_cdf(result),
    }


def _of_several(results: Sequence[SweepResult]) -> dict[str, Figure | None]:
    return {
        "user_rmse": grid(results, "ue_error_m", "rms", "rms user position error [m]"),
        "user_median": grid(results, "ue_error_m", "median", "median user position error [m]"),
        "scatterer_rmse": grid(results, "scatterer_error_m", "rms", "rms shared scatterer error [m]"),
        "scatterer_median": grid(results, "scatterer_error_m", "median", "median shared scatterer error [m]"),
        "nmse": grid(results, "channel_nmse_db", "mean", "channel NMSE [dB]", log=False),
        "converged": grid(results, "converged_fraction", "mean", "share with error < 3 PEB", log=False),
    }


def error_vs_snr(result: SweepResult) -> Figure | None:
    """Median and rms of the user error against SNR, log scale, with the same statistic of the bound."""
    if not having(result, "ue_error_m", "median"):
        return None
    figure, axes = panels(2, sharey=True)
    for each, stat in zip(axes, ("median", "rms"), strict=True):
        snr_curves(each, result, "ue_error_m", stat)
        each.set(ylabel=f"{stat} user position error [m]")
        log_scale(each, "y")
    return against_snr(figure, axes)


def converged_vs_snr(result: SweepResult) -> Figure | None:
    """Converged and flagged share of scenes against SNR."""
    if not having(result, "converged_fraction", "mean"):
        return None
    figure, axes = panels(2)
    for each, metric in zip(axes, ("converged_fraction", "flagged_fraction"), strict=True):
        snr_curves(each, result, metric, "mean")
    axes[0].set(ylabel="share of scenes with error < 3 PEB", ylim=(None, 1.01))
    axes[1].set(ylabel="share of flagged scenes", ylim=(-0.01, None))
    return against_snr(figure, axes)


def nmse_vs_snr(result: SweepResult) -> Figure | None:
    """Mean channel NMSE against SNR and, where the genie ran, its distance to the genie's."""
    if not having(result, "channel_nmse_db", "mean"):
        return None
    gaps = having(result, "nmse_gap_to_genie_db", "ratio")
    figure, axes = panels(2 if gaps else 1)
    snr_curves(axes[0], result, "channel_nmse_db", "mean")
    axes[0].set_ylabel("channel NMSE, mean over scenes [dB]")
    if gaps:
        snr_curves(axes[1], result, "nmse_gap_to_genie_db", "ratio")
        axes[1].set_ylabel(f"NMSE above {GENIE} [dB]")
        axes[1].set_ylim(bottom=0.0)
    return against_snr(figure, axes)


def scatterers_vs_snr(result: SweepResult) -> Figure | None:
    """Median and rms of the error of shared and of specific scatterers against SNR, with their bounds."""
    kinds = {"scatterer_error_m": "shared", "scatterer_specific_error_m": "specific"}
    shown = {metric: kind for metric, kind in kinds.items() if having(result, metric, "median")}
    if not shown:
        return None
    figure, axes = panels(2 * len(shown), columns=2)
    pairs = [(metric, kind, stat) for metric, kind in shown.items() for stat in ("median", "rms")]
    for each, (metric, kind, stat) in zip(axes, pairs, strict=True):
        snr_curves(each, result, metric, stat)
        each.axhline(result.cutoff_m, color="#999999", linewidth=1, label="error of a missed scatterer")
        each.set(ylabel=f"{stat} {kind} scatterer error [m]")
        log_scale(each, "y")
    return against_snr(figure, axes)


def clocks_vs_snr(result: SweepResult) -> Figure | None:
    """Median of the clock offset error against SNR."""
    if not having(result, "clock_offset_error_s", "median"):
        return None
    figure, axes = panels(1, width=6.5)
    snr_curves(axes[0], result, "clock_offset_error_s", "median", 1e9)
    axes[0].set(ylabel="median clock offset error [ns]")
    log_scale(axes[0], "y")
    return against_snr(figure, axes)
