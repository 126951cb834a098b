"""Distributions over scenes: of errors, of errors over their bound, and of errors in the metric of their covariance."""

from collections.abc import Callable

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import chi2

from sensing.evaluation.curves import having, snr_curves, snr_of, values_of
from sensing.evaluation.result import SweepResult
from sensing.evaluation.statistics import Floats
from sensing.evaluation.style import BOUNDS, legend_below, log_scale, marks, panels
from sensing.evaluation.summary import snr_label

CDF_SNR_DB = (0.0, 10.0, 20.0)


def error_cdf(result: SweepResult) -> Figure | None:
    """Distribution of the user error at up to three SNR points, with that of the bound."""
    names = _scored(result, "ue_error_m")

    def draw(axes: Axes, at: int) -> None:
        for name in names:
            _step(axes, result.scores[name]["ue_error_m"][at], label=name, color=marks(name, result.names)[0])
        for bound, values in result.bounds.items():
            color, dash, label = BOUNDS[bound]
            _step(axes, values["ue_error_m"][at], label=label, color=color, linestyle=dash)
        axes.set_xlabel("user position error [m]")

    return _distributions(result, draw) if names else None


def error_over_peb_cdf(result: SweepResult) -> Figure | None:
    """Distribution of the error over its bound at up to three SNR points."""
    ratios = {name: result.over_bound(name) for name in result.names}
    shown = {name: ratio for name, ratio in ratios.items() if ratio is not None}

    def draw(axes: Axes, at: int) -> None:
        for name, ratio in shown.items():
            _step(axes, ratio[at], label=name, color=marks(name, result.names)[0])
        axes.axvline(1.0, color="black", linestyle="--", linewidth=1, label="PEB")
        axes.axvline(3.0, color="black", linewidth=1, alpha=0.5, label="converged left of this line")
        axes.set_xlabel("user position error / PEB")

    return _distributions(result, draw) if shown else None


def nmse_cdf(result: SweepResult) -> Figure | None:
    """Distribution of the channel error at up to three SNR points."""
    names = _scored(result, "channel_nmse_db")

    def draw(axes: Axes, at: int) -> None:
        for name in names:
            _step(axes, result.scores[name]["channel_nmse_db"][at], label=name, color=marks(name, result.names)[0])
        axes.set_xlabel("channel NMSE [dB]")

    return _distributions(result, draw, log=False) if names else None


def flagged_cdf(result: SweepResult) -> Figure | None:
    """Distribution of the user error with and without flag, for a single set of scenes."""
    names = [name for name in _scored(result, "ue_error_m") if result.flagged(name) is not None]

    def draw(axes: Axes, at: int) -> None:
        for name in names:
            error, flagged = result.scores[name]["ue_error_m"][at], result.flagged(name)
            assert flagged is not None
            color = marks(name, result.names)[0]
            for part, dash, text in ((~flagged[at], "-", "trusted"), (flagged[at], "--", "flagged")):
                if part.any():
                    _step(axes, error[part], label=f"{name}, {text} ({part.sum()})", color=color, linestyle=dash)
        axes.set_xlabel("user position error [m]")

    return _distributions(result, draw) if names else None


def calibration(result: SweepResult) -> Figure | None:
    """Coverage of the claimed ellipsoids against their probability; coverage and NEES of all estimators against SNR."""
    names = _scored(result, "nees_user")
    if not names:
        return None
    sweep = len(result.snr_db) > 1
    figure, axes = panels(3 if sweep else 1, width=4.6)
    _reliability(axes[0], result, names)
    if sweep:
        snr_curves(axes[1], result, "covered_90_fraction", "mean")
        axes[1].axhline(0.9, color="black", linewidth=1, linestyle="--", label="nominal")
        axes[1].set(ylabel="share inside the 90 % ellipsoid", xlabel="SNR [dB]")
        _nees_panel(axes[2], result)
        legend_below(figure, axes[1:])
    return figure


def _reliability(axes: Axes, result: SweepResult, names: list[str]) -> None:
    """Empirical distribution of the chi-square probability of the error: by SNR, or by estimator at a single SNR."""
    axes.plot([0, 1], [0, 1], color="black", linewidth=1, linestyle="--")
    order = np.argsort(snr_of(result))
    several = len(order) > 1
    for place, at in enumerate(order):
        for name in names[:1] if several else names:
            probability = chi2.cdf(3 * result.scores[name]["nees_user"][at], 3)
            color = colormaps["viridis"](0.92 * place / (len(order) - 1)) if several else marks(name, result.names)[0]
            _step(axes, probability, label=snr_label(result.snr_db[at]) if several else name, color=color)
    title = f"{names[0]}, all scenes" if several else f"all scenes, SNR {snr_label(result.snr_db[0])}"
    axes.set(xlabel="claimed probability of the ellipsoid", ylabel="share of scenes inside", title=title)
    axes.legend(fontsize=8, frameon=False, loc="upper left")


def _nees_panel(axes: Axes, result: SweepResult) -> None:
    scored = having(result, "nees_user", "mean")
    trusted = [name for name in scored if _everywhere(result, name, "nees_user_unflagged")]
    doubted = [name for name in scored if name not in trusted]
    metric, first = ("nees_user_unflagged", trusted[0]) if trusted else ("nees_user", scored[0])
    snr_curves(axes, result, "nees_user_unflagged", "mean", only=trusted)
    snr_curves(axes, result, "nees_user", "mean", only=doubted, linestyle="--", mfc="white")
    sides = [values_of(result, first, metric, side) for side in ("band_low", "band_high")]
    if sides[0] is not None and sides[1] is not None:
        order = np.argsort(snr_of(result))
        low, high = (np.array([value.value for value in side or ()])[order] for side in sides)
        axes.fill_between(snr_of(result)[order], low, high, color="#bbbbbb", alpha=0.5, label="95 % band")
    axes.axhline(1.0, color="black", linewidth=1, linestyle="--")
    axes.set(ylabel="NEES per degree of freedom", xlabel="SNR [dB]")
    log_scale(axes, "y")


def _everywhere(result: SweepResult, name: str, metric: str) -> bool:
    """Whether the mean of a metric exists at every SNR."""
    values = values_of(result, name, metric, "mean")
    return values is not None and all(np.isfinite(value.value) for value in values)


def _scored(result: SweepResult, quantity: str) -> list[str]:
    return [name for name in result.names if quantity in result.scores[name]]


def _distributions(result: SweepResult, draw: Callable[[Axes, int], None], log: bool = True) -> Figure:
    """One panel per chosen SNR, log abscissa unless it is in decibel."""
    snr = snr_of(result)
    chosen = range(len(snr)) if len(snr) <= 3 else sorted({int(np.abs(snr - wanted).argmin()) for wanted in CDF_SNR_DB})
    single = len(chosen) == 1
    figure, axes = panels(len(chosen), width=6.5 if single else 4.2, sharey=True)
    for each, at in zip(axes, chosen, strict=True):
        draw(each, at)
        if log:
            log_scale(each, "x")
        each.set(ylim=(0, 1.01), title=f"SNR {snr_label(result.snr_db[at])}")
    axes[0].set_ylabel("share of scenes")
    legend_below(figure, axes)
    return figure


def _step(axes: Axes, values: Floats, **style: object) -> None:
    """Empirical distribution; scenes without a finite value count, so that the curve ends below 1."""
    finite = np.sort(values[np.isfinite(values)])
    if finite.size:
        share = np.arange(finite.size + 1) / values.size
        axes.step(np.append(finite[0], finite), share, where="post", linewidth=1.6, **style)  # type: ignore[arg-type]
