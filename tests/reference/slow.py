"""Array response, path lengths, channel and Fisher information by loops, without the package's maths."""

import math

import torch

C = 299_792_458.0


def array_response(direction, antenna_local, rotation, wavelength):
    """One station, one direction: list of complex numbers, one per antenna."""
    out = []
    for p in antenna_local:
        turned = [sum(rotation[i][j] * p[j] for j in range(3)) for i in range(3)]
        phase = 2 * math.pi * sum(turned[i] * direction[i] for i in range(3)) / wavelength
        out.append(complex(math.cos(phase), math.sin(phase)))
    return out


def distance(a, b):
    return math.sqrt(sum((x - y) ** 2 for x, y in zip(a, b, strict=True)))


def channel(scene, deployment):
    """One scene without batch axis: [bs ant sc] by a loop over bs, ant, sc and path."""
    wavelength = C / float(deployment.carrier_hz)
    bs, rotation = deployment.bs_position.tolist(), deployment.bs_rotation.tolist()
    antennas, freq = deployment.antenna_local.tolist(), deployment.pilot_freq.tolist()
    ue, points = scene.ue_position.tolist(), scene.scatterer_position.tolist()
    out = torch.zeros(len(bs), len(antennas), len(freq), dtype=torch.complex128)
    for q in range(len(bs)):
        for n, point in enumerate(points):
            if not scene.visible[q, n]:
                continue
            r = distance(point, bs[q])
            direction = [(point[i] - bs[q][i]) / r for i in range(3)]
            steering = array_response(direction, antennas, rotation[q], wavelength)
            delay = (r + distance(point, ue)) / C + float(scene.clock_offset[q])
            for m in range(len(antennas)):
                for k in range(len(freq)):
                    turn = -2 * math.pi * freq[k] * delay
                    out[q, m, k] += complex(scene.gain[q, n]) * steering[m] * complex(math.cos(turn), math.sin(turn))
    return out


def model(theta, visible, deployment):
    """Real parameters to real observation, for autograd: theta = (u, c * offsets, scatterers, Re gains, Im gains).

    One gain per visible pair, in the order of `visible.nonzero()`.
    """
    stations, points = visible.shape
    u, offset = theta[:3], theta[3 : 3 + stations]
    scatterer = theta[3 + stations : 3 + stations + 3 * points].reshape(points, 3)
    gains = theta[3 + stations + 3 * points :].reshape(2, -1)
    wavenumber = 2 * math.pi * deployment.carrier_hz / C
    out = [torch.zeros(len(deployment.antenna_local), len(deployment.pilot_freq), 2, dtype=theta.dtype)] * stations
    for number, (q, n) in enumerate(visible.nonzero().tolist()):
        leg = scatterer[n] - deployment.bs_position[q]
        length = leg.norm() + (scatterer[n] - u).norm() + offset[q]
        local = deployment.bs_rotation[q].T @ (leg / leg.norm())
        phase = wavenumber * (deployment.antenna_local @ local)[:, None]
        phase = phase - 2 * math.pi * deployment.pilot_freq[None, :] * length / C
        re, im = gains[0, number], gains[1, number]
        wave = torch.stack([re * phase.cos() - im * phase.sin(), re * phase.sin() + im * phase.cos()], -1)
        out[q] = out[q] + wave
    return torch.stack(out)


def parameters(scene):
    """theta of `model` for one scene."""
    gain = scene.gain[scene.visible]
    offset = C * scene.clock_offset
    return torch.cat([scene.ue_position, offset, scene.scatterer_position.reshape(-1), gain.real, gain.imag])


def covariance(scene, noise_var, deployment, prior_std):
    """Inverse of the full Fisher information over (u, c * offsets, scatterers, gains), prior rows appended.

    By QR of the column-scaled square-root information, so that nothing is squared. All scatterers must be seen.
    """
    theta = parameters(scene)
    jacobian = torch.func.jacfwd(lambda t: model(t, scene.visible, deployment))(theta)
    root = (2.0 / noise_var).sqrt()[:, None, None, None, None] * jacobian
    root = root.reshape(-1, len(theta))
    rows = torch.zeros(len(prior_std), len(theta), dtype=theta.dtype)
    rows[range(len(prior_std)), range(len(prior_std))] = 1.0 / prior_std
    root = torch.cat([root, rows])
    scale = root.norm(dim=0)
    r = torch.linalg.qr(root / scale).R
    inverse = torch.linalg.solve_triangular(r, torch.eye(len(theta), dtype=theta.dtype), upper=True)
    return (inverse @ inverse.T) / scale[:, None] / scale[None, :]
