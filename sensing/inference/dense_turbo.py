"""Turbo LMMSE with a message of its own for every column: for dictionaries with nearly collinear columns.

Module A is the LMMSE posterior under independent priors CN(0, v_g), module B the sparsity prior, as in `turbo`. With
nearly collinear columns the one variance that all columns share there is wrong by orders of magnitude. Here

    A     r_g = mu_g / (1 - u_g),   w_g = Sigma_gg / (1 - u_g),   u_g = Sigma_gg / v_g     (all but the prior of g)
    B     log-odds L_g of `r_g = x_g + CN(0, w_g)`,   v_g^new = variance with the Wiener gain of that soft decision
    v_g   <- v_g^(1 - d) (v_g^new)^d

so w_g is positive whatever the columns are. One eigendecomposition of the Gram, `G = U diag(e) U^H`, serves all
observations: the first prior is the same for all columns, and nearly collinear columns span few dimensions, in which
the next layers work. From then on only the most probable columns stay, and their Gram is small.

What a layer may learn are factors on noise and power and shifts of the prior log-odds and of the damping, all functions
of the SNR, and what a network makes of each column's messages and its rivals'. All are neutral at zero: untrained is
classical, bit for bit.

At run time a problem falls back to sparse Bayesian learning where the layers have settled on columns that cannot be
right: where the energy of the residual, chi-square with 2 N degrees of freedom under the noise alone, lies too many
standard deviations above what the noise has.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sensing.errors import ConfigError
from sensing.fusion.network import NeutralNetwork
from sensing.inference.dense_columns import (
    LEAST,
    Columns,
    Dictionary,
    all_columns,
    left,
    lmmse_by_gram,
    lmmse_in_span,
    some_columns,
)
from sensing.inference.dense_sbl import sbl
from sensing.inference.prior import SupportPrior, support_posterior
from sensing.inference.turbo import received_power, soft_deviation

SCHEDULE = ("noise", "power", "odds", "damping")
"""Corrections of a layer that depend on the SNR: log factors on noise and power, shifts of two log-odds."""

SBL = ("mackay", 0.25)
"""Update and hyperprior of the sparse Bayesian learning that problems fall back to."""

NEAR = 0.5
"""Squared cosine from which on two columns are rivals."""

FAINT = -20.0
"""Log-odds below which columns are no rivals."""


class Recovered(NamedTuple):
    """Gains of all columns."""

    mean: Tensor  # [* col] complex
    log_odds: Tensor  # [* col] of "active", as the last layer sees it; -inf where the column was left out
    history: list[Tensor]  # [* col] means with which each layer but the first began, without the fall-back
    fallback: Tensor  # [*] bool, problems whose mean is that of sparse Bayesian learning


class Layer(nn.Module):
    """Corrections of one layer, all zero until trained.

    Args:
        hidden: width of the networks; 0: none, the layer is classical.
    """

    FEATURES = 8

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.schedule = NeutralNetwork(1, hidden, len(SCHEDULE)) if hidden else None
        self.column = NeutralNetwork(self.FEATURES, hidden, 2) if hidden else None

    def scheduled(self, log_snr: Tensor) -> tuple[Tensor, ...]:
        """The four corrections of each observation, [*] each."""
        if self.schedule is None:
            return (torch.zeros_like(log_snr),) * len(SCHEDULE)
        return self.schedule.raw(log_snr[..., None] / 5.0).unbind(-1)

    def judged(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Shifts of log-odds and damping of every column, [* col] each."""
        if self.column is None:
            return torch.zeros_like(features[..., 0]), torch.zeros_like(features[..., 0])
        shift = self.column.raw(features)
        return 5.0 * shift[..., 0], shift[..., 1]


class DenseTurbo(nn.Module):
    """Sparse gains in a given dictionary by a fixed number of layers.

    Args:
        layers: rounds between the modules; one more LMMSE ends them.
        active: expected number of active columns.
        damping: share of the new message, in (0, 1), geometric.
        noise_scale: factor on the noise variance that module A assumes.
        power_scale: factor on the variance of active gains, which is estimated from the received power.
        wide: layers that see all columns.
        kept: columns that stay afterwards.
        hidden: width of the learned networks; 0: none, the classical estimator.
        fallback: standard deviations of the residual's energy above that of the noise from which on a problem falls
            back to sparse Bayesian learning, if that fits better; inf: never. Not in training.
    """

    def __init__(
        self,
        layers: int = 10,
        active: float = 8.0,
        damping: float = 0.5,
        noise_scale: float = 1.0,
        power_scale: float = 1.0,
        wide: int = 3,
        kept: int = 96,
        hidden: int = 16,
        fallback: float = 4.0,
    ) -> None:
        super().__init__()
        if min(layers, wide, kept) < 1 or hidden < 0:
            raise ConfigError(f"need layers, wide, kept >= 1 and hidden >= 0, got {layers}, {wide}, {kept}, {hidden}")
        if not (0 < damping < 1 and active > 0 and noise_scale > 0 and power_scale > 0):
            raise ConfigError(
                "need 0 < damping < 1 and active, noise_scale, power_scale > 0, got "
                f"{damping}, {active}, {noise_scale}, {power_scale}"
            )
        if not fallback > 0:
            raise ConfigError(f"fallback must be > 0, got {fallback}")
        self.active, self.wide, self.kept, self.fallback = active, wide, kept, fallback
        self.damping, self.noise_scale, self.power_scale = damping, noise_scale, power_scale
        self.layers = nn.ModuleList(Layer(hidden) for _ in range(layers + 1))

    def forward(
        self, dictionary: Dictionary, matched: Tensor, energy: Tensor, entries: int, noise_var: Tensor
    ) -> Recovered:
        """Estimate the gains; no observation depends on the others of its batch.

        Args:
            dictionary: common to the batch.
            matched: [* col] `Phi^H y`.
            energy: [*] `|y|^2`.
            entries: length of y.
            noise_var: [*].
        """
        size = matched.shape[-1]
        base = received_power(energy, entries, noise_var, torch.full_like(noise_var, self.active)) * self.power_scale
        log_snr = (base * entries / noise_var).log()  # of a single active column
        odds = math.log(self.active / max(size - self.active, 1e-3 * size))
        logit = math.log(self.damping / (1.0 - self.damping))
        prior = torch.full_like(matched.real, 1.0) * (self.active / size) * base[..., None]
        chosen = all_columns(dictionary, matched)
        before = log_odds = torch.zeros_like(prior)
        history: list[Tensor] = []
        for number, layer in enumerate(self.layers):
            assert isinstance(layer, Layer)
            noise, power, shift, damping = layer.scheduled(log_snr)
            variance = noise_var * self.noise_scale * noise.exp()
            if number == self.wide:
                kept = log_odds.detach().topk(min(self.kept, size), -1).indices.sort(-1).values
                prior, before = prior.gather(-1, kept), before.gather(-1, kept)
                chosen = some_columns(dictionary, matched, kept)
            if number == 0:
                r, w = _first(dictionary, matched, variance, prior[..., 0])
            else:
                mean, r, w = (lmmse_in_span if number < self.wide else lmmse_by_gram)(
                    dictionary, chosen, variance, prior
                )
                history.append(mean.new_zeros(matched.shape).scatter(-1, chosen.number, mean))
                if number + 1 == len(self.layers):
                    break
            sx2 = base * power.exp()
            b = support_posterior(
                r[..., None],
                w,
                sx2[..., None].expand_as(w),
                SupportPrior(w.new_zeros(()), w.new_zeros(()), (odds + shift)[..., None, None]),
                torch.ones_like(w[..., None], dtype=torch.bool),
                0,
            )
            log_odds = b.log_odds[..., 0]
            extra, slower = layer.judged(_features(log_odds, before, w, prior, sx2, log_snr, chosen))
            before, log_odds = log_odds, log_odds + extra
            deviation = soft_deviation(log_odds[..., None], w, sx2[..., None].expand_as(w))[..., 0]
            new = torch.maximum(deviation.square(), LEAST * w.minimum(sx2[..., None]))
            share = torch.sigmoid(logit + damping[..., None] + slower)
            prior = torch.exp(prior.log() + share * (new.log() - prior.log()))
        rest = log_odds.new_full(matched.shape, -torch.inf)
        never = torch.zeros_like(noise_var, dtype=torch.bool)
        found = Recovered(history[-1], rest.scatter(-1, chosen.number, log_odds), history, never)
        return found if self.training else self._fall_back(found, dictionary, matched, energy, entries, noise_var)

    def _fall_back(
        self, found: Recovered, dictionary: Dictionary, matched: Tensor, energy: Tensor, entries: int, noise_var: Tensor
    ) -> Recovered:
        """Sparse Bayesian learning where the residual is no noise, if its own is less."""

        def excess(mean: Tensor) -> Tensor:
            misfit = energy - (mean.conj() * (2.0 * matched - mean @ dictionary.gram.mT)).real.sum(-1)
            return (misfit / noise_var - entries) / math.sqrt(entries)

        worse = excess(found.mean) > self.fallback
        if not bool(worse.any()):
            return found
        mean = torch.zeros_like(matched)
        layers = len(self.layers) - 1
        mean[worse] = sbl(
            dictionary, matched[worse], energy[worse], noise_var[worse], layers, *SBL, self.wide, self.kept
        )
        better = worse & (excess(mean) < excess(found.mean))
        return found._replace(mean=torch.where(better[..., None], mean, found.mean), fallback=better)


def _first(dictionary: Dictionary, matched: Tensor, noise_var: Tensor, prior: Tensor) -> tuple[Tensor, Tensor]:
    """Module A where all columns have the prior variance `prior` [*]: r and w, each [* col].

    `Phi^H C^-1 y = U (1 / (v e + s2)) U^H Phi^H y`, `phi_g^H C^-1 phi_g = sum_k |U_gk|^2 e_k / (v e_k + s2)`.
    """
    _, value, vector = dictionary
    gain = 1.0 / (prior[..., None] * value + noise_var[..., None])
    strength = (gain * value) @ vector.abs().square().mT
    return (((matched @ vector.conj()) * gain) @ vector.mT) / strength, left(prior[..., None], strength) / strength


def _features(
    log_odds: Tensor, before: Tensor, w: Tensor, prior: Tensor, sx2: Tensor, log_snr: Tensor, c: Columns
) -> Tensor:
    """What the network of a layer sees of a column, [* col feature], all free of units and of order one."""
    probability = log_odds.sigmoid()
    rivals = (c.coherence @ probability[..., None])[..., 0]  # expected number of active columns that look like it
    sharp = (c.coherence.square().square() @ probability[..., None])[..., 0]  # and of those that are nearly the same
    best = torch.where(c.coherence > NEAR, log_odds.clamp_min(FAINT)[..., None, :], FAINT).amax(-1)
    seen = [
        torch.asinh(log_odds / 4.0),
        torch.asinh(before / 4.0),
        torch.asinh((log_odds - best) / 4.0),
        torch.log(prior / w) / 5.0,
        torch.log(w / sx2[..., None]) / 5.0,
        torch.log1p(rivals),
        torch.log1p(sharp),
        (log_snr[..., None] / 5.0).expand_as(w),
    ]
    return torch.stack(seen, -1)
