"""Figures of an evaluation: errors against SNR and their distributions, next to the bound."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sensing.data.atomic import atomic_path
from sensing.evaluation.result import SweepResult
from sensing.evaluation.scene_map import scene_map
from sensing.evaluation.statistics import Floats, Value, proportion, with_interval
from sensing.evaluation.style import BOUNDS, legend_below, log_scale, marks, panels
from sensing.evaluation.summary import snr_label

CAPTIONS = {
    "error_vs_snr": "User position error against SNR with the position error bound (PEB); bars: 95 % confidence.",
    "converged_vs_snr": "Share of scenes whose error is below three times their PEB, and the share that it flags.",
    "nmse_vs_snr": "Channel error on the pilots: NMSE averaged over scenes; bars: 95 % confidence.",
    "scatterers_and_clocks": "Error of shared scatterers and clock offsets: rms within a scene, median over scenes.",
    "error_cdf": "Share of scenes with a user position error below the abscissa.",
    "error_over_peb_cdf": "Share of scenes whose error over their own PEB is below the abscissa; converged below 3.",
    "flagged_cdf": "User position error of scenes that the estimator trusts (solid) and that it flags (dashed).",
    "scene_map": "One scene from above, and magnified around the user, with the claimed 95 % ellipses.",
}
CDF_SNR_DB = (0.0, 10.0, 20.0)
GENIE = "genie_lmmse"


def save_figures(result: SweepResult, folder: str | Path) -> dict[str, Path]:
    """Draw every figure that the result can fill, as PNG.

    Args:
        result: the evaluation.
        folder: where the files go; made if absent.

    Returns:
        Name (a key of `CAPTIONS`) to file, in the order in which to show them.
    """
    drawn: dict[str, Figure | None] = {
        "error_vs_snr": error_vs_snr(result),
        "converged_vs_snr": converged_vs_snr(result),
        "nmse_vs_snr": nmse_vs_snr(result),
        "scatterers_and_clocks": scatterers_and_clocks(result),
        "error_cdf": error_cdf(result),
        "error_over_peb_cdf": error_over_peb_cdf(result),
        "flagged_cdf": flagged_cdf(result) if len(result.snr_db) == 1 else None,
        "scene_map": scene_map(result.sketch) if result.sketch is not None else None,
    }
    files = {}
    for name, figure in drawn.items():
        if figure is not None:
            files[name] = Path(folder) / f"{name}.png"
            with atomic_path(files[name]) as temporary:
                figure.savefig(temporary, format="png")
    return files


def error_vs_snr(result: SweepResult) -> Figure | None:
    """Median and rms of the user error against SNR, log scale, with the same statistic of the bound."""
    names = _having(result, "ue_error_m")
    if len(result.snr_db) < 2 or not names:
        return None
    figure, axes = panels(2, sharey=True)
    for each, stat in zip(axes, ("median", "rms"), strict=True):
        for name in names:
            _curve(each, result, name, [with_interval(row, stat) for row in result.scores[name]["ue_error_m"]])
        _bound_curves(each, result, "ue_error_m", stat)
        each.set(ylabel=f"{stat} user position error [m]")
        log_scale(each, "y")
    return _against_snr(figure, axes)


def converged_vs_snr(result: SweepResult) -> Figure | None:
    """Converged and flagged share of scenes against SNR."""
    names = [name for name in result.names if result.converged(name) is not None]
    if len(result.snr_db) < 2 or not names:
        return None
    figure, axes = panels(2)
    for name in names:
        for each, hits in zip(axes, (result.converged(name), result.flagged(name)), strict=True):
            if hits is not None:
                _curve(each, result, name, [proportion(row) for row in hits])
    axes[0].set(ylabel="share of scenes with error < 3 PEB", ylim=(None, 1.01))
    axes[1].set(ylabel="share of flagged scenes", ylim=(-0.01, None))
    return _against_snr(figure, axes)


def nmse_vs_snr(result: SweepResult) -> Figure | None:
    """Mean channel NMSE against SNR and, where the genie ran, its distance to the genie's."""
    names = _having(result, "channel_nmse_db")
    if len(result.snr_db) < 2 or not names:
        return None
    nmse = {
        name: [with_interval(row, "mean", decibel=True) for row in result.scores[name]["channel_nmse_db"]]
        for name in names
    }
    figure, axes = panels(2 if GENIE in names and len(names) > 1 else 1)
    for name in names:
        _curve(axes[0], result, name, nmse[name])
    axes[0].set_ylabel("channel NMSE, mean over scenes [dB]")
    if len(axes) > 1:
        for name in names:
            if name != GENIE:
                floors = [value.value for value in nmse[GENIE]]
                gaps = [
                    Value(v.value - f, v.low - f, v.high - f, v.num_scenes)
                    for v, f in zip(nmse[name], floors, strict=True)
                ]
                _curve(axes[1], result, name, gaps)
        axes[1].set_ylabel(f"NMSE above {GENIE} [dB]")
        axes[1].set_ylim(bottom=0.0)
    return _against_snr(figure, axes)


def scatterers_and_clocks(result: SweepResult) -> Figure | None:
    """Scatterer and clock offset errors against SNR, with their bounds."""
    names = _having(result, "scatterer_error_m")
    if len(result.snr_db) < 2 or not names:
        return None
    figure, axes = panels(2)
    quantities = {
        "scatterer_error_m": ("shared scatterer error [m]", 1.0),
        "clock_offset_error_s": ("clock offset error [ns]", 1e9),
    }
    for each, (quantity, (label, scale)) in zip(axes, quantities.items(), strict=True):
        for name in _having(result, quantity):
            if quantity == "clock_offset_error_s" and result.reference.get(name) == "peb_sync":
                continue  # it is given the offsets
            _curve(each, result, name, [with_interval(scale * row, "median") for row in result.scores[name][quantity]])
        _bound_curves(each, result, quantity, "median", scale, () if quantity == "scatterer_error_m" else ("peb_sync",))
        each.set(ylabel=f"median {label}")
        log_scale(each, "y")
    return _against_snr(figure, axes)


def error_cdf(result: SweepResult) -> Figure | None:
    """Distribution of the user error at up to three SNR points, with that of the bound."""

    def draw(axes: Axes, at: int) -> None:
        for name in _having(result, "ue_error_m"):
            _step(axes, result.scores[name]["ue_error_m"][at], label=name, color=marks(name, result.names)[0])
        for bound, values in result.bounds.items():
            color, dash, label = BOUNDS[bound]
            _step(axes, values["ue_error_m"][at], label=label, color=color, linestyle=dash)
        axes.set_xlabel("user position error [m]")

    return _distributions(result, draw) if _having(result, "ue_error_m") else None


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


def flagged_cdf(result: SweepResult) -> Figure | None:
    """Distribution of the user error with and without flag, for a single set of scenes."""
    names = [name for name in _having(result, "ue_error_m") if result.flagged(name) is not None]

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


def _having(result: SweepResult, quantity: str) -> list[str]:
    return [name for name in result.names if quantity in result.scores[name]]


def _curve(axes: Axes, result: SweepResult, name: str, values: Sequence[Value]) -> None:
    """A statistic against SNR with its intervals; estimators stand a little apart so that equal ones can be told."""
    snr = _snr(result)
    order = np.argsort(snr)
    shift = 0.12 * (result.names.index(name) - (len(result.names) - 1) / 2)
    y, low, high = (np.array(column)[order] for column in list(zip(*values, strict=True))[:3])
    color, marker = marks(name, result.names)
    axes.plot(snr[order] + shift, y, color=color, marker=marker, markersize=4.5, linewidth=1.4, label=name)
    axes.vlines(snr[order] + shift, low, high, color=color, linewidth=1.1, alpha=0.8)


def _bound_curves(
    axes: Axes, result: SweepResult, quantity: str, stat: str, scale: float = 1.0, skip: Sequence[str] = ()
) -> None:
    order = np.argsort(_snr(result))
    for bound, values in result.bounds.items():
        if bound not in skip:
            color, dash, label = BOUNDS[bound]
            y = np.array([with_interval(scale * row, stat).value for row in values[quantity]])
            axes.plot(_snr(result)[order], y[order], color=color, linestyle=dash, linewidth=1.6, label=label, zorder=3)


def _against_snr(figure: Figure, axes: Sequence[Axes]) -> Figure:
    for each in axes:
        each.set_xlabel("SNR [dB]")
    legend_below(figure, axes)
    return figure


def _snr(result: SweepResult) -> Floats:
    return np.array([np.nan if snr is None else snr for snr in result.snr_db])


def _distributions(result: SweepResult, draw: Callable[[Axes, int], None]) -> Figure:
    """One panel per chosen SNR, log abscissa."""
    snr = _snr(result)
    chosen = range(len(snr)) if len(snr) <= 3 else sorted({int(np.abs(snr - wanted).argmin()) for wanted in CDF_SNR_DB})
    single = len(chosen) == 1
    figure, axes = panels(len(chosen), width=6.5 if single else 4.2, sharey=True)
    for each, at in zip(axes, chosen, strict=True):
        draw(each, at)
        log_scale(each, "x")
        each.set(ylim=(0, 1.01), title=f"SNR {snr_label(result.snr_db[at])}")
    axes[0].set_ylabel("share of scenes")
    legend_below(figure, axes)
    return figure


def _step(axes: Axes, values: Floats, **style: object) -> None:
    """Empirical distribution; scenes without a finite value count, so that the curve ends below 1."""
    finite = np.sort(values[np.isfinite(values)])
    if finite.size:
        share = np.arange(1, finite.size + 1) / values.size
        axes.step(finite, share, where="post", linewidth=1.6, **style)  # type: ignore[arg-type]
