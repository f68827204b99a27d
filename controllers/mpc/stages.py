"""From linearised collocation to a linear-quadratic programme in nodes and moves.

The equations of a stage, scaled, with h its length and D the differentiation matrix of `transcription.radau`:

    c_i = D[0, i] x_k + D[1, i] z_k + D[2, i] x_{k+1} - h f(point_i, u_k) = 0,        i = 1, 2

Newton's step eliminates the interior point z_k (lifted collocation: a multiple shooting whose integrator does one Newton
iteration per iteration of the optimiser):

    dx_{k+1} = A dx_k + B du_k + a,        dz_k = X dx_k + U du_k + r

All arrays begin with scenarios [S] and stages [N].
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from controllers.mpc.points import N_POINT, Slopes
from controllers.mpc.transcription import DEGREE, N_MOVE, radau
from twin.transition import N_X

D = radau(DEGREE)


class Stages(NamedTuple):
    """Linearised stages."""

    by: np.ndarray  # [S, N, 13, 16] d x_{k+1} / d (x_k, u_k): A, B
    gap: np.ndarray  # [S, N, 13] a
    inner_by: np.ndarray  # [S, N, 13, 16] X, U
    inner_gap: np.ndarray  # [S, N, 13] r
    first: np.ndarray  # [S, N, 13, 13] d x_{k+1} / d (-c_1)
    second: np.ndarray  # [S, N, 13, 13] d x_{k+1} / d (-c_2)
    inner_first: np.ndarray  # [S, N, 13, 13] d z_k / d (-c_1)
    inner_second: np.ndarray  # [S, N, 13, 13] d z_k / d (-c_2)


def residuals(x0: np.ndarray, z: np.ndarray, x: np.ndarray, f: np.ndarray, h: float) -> np.ndarray:
    """c [S, N, 2, 13] at nodes x (x0 [S, 13] before them), interior points z and rates f [S, N, 2, 13]."""
    start = np.concatenate([x0[:, None], x[:, :-1]], axis=1)
    points = np.stack([start, z, x], axis=2)
    return np.einsum("skjn,ji->skin", points, D[:, 1:]) - h * f


def eliminate(slopes: Slopes, c: np.ndarray, h: float) -> Stages:
    """The stages without their interior points; slopes at the points in the order of c."""
    shape = (*c.shape[:3], N_X, N_POINT)
    by = h * slopes.by.reshape(shape)
    eye = np.eye(N_X)
    one, two = D[1, 1] * eye - by[:, :, 0, :, :N_X], D[2, 2] * eye - by[:, :, 1, :, :N_X]
    d12, d21 = D[1, 2], D[2, 1]
    z2 = np.linalg.inv(d12 * eye - (two @ one) / d21)
    z1 = -(z2 @ two) / d21
    x1, x2 = (eye - one @ z1) / d21, -(one @ z2) / d21
    start = np.concatenate([-D[0, 1] * eye, np.zeros((N_X, N_MOVE))], axis=1)
    right1 = by[:, :, 0] * _MOVES + start
    start[:, :N_X] = -D[0, 2] * eye
    right2 = by[:, :, 1] * _MOVES + start
    c1, c2 = c[:, :, 0, :, None], c[:, :, 1, :, None]
    return Stages(
        x1 @ right1 + x2 @ right2, -(x1 @ c1 + x2 @ c2)[..., 0], z1 @ right1 + z2 @ right2, -(z1 @ c1 + z2 @ c2)[..., 0], x1, x2, z1, z2
    )  # fmt: skip


_MOVES = np.concatenate([np.zeros(N_X), np.ones(N_MOVE)])


def closed(stages: Stages, c: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Changes of interior points and nodes [S, N, 13] that close the gaps c [S, N, 2, 13] to first order, moves held."""
    c1, c2 = c[:, :, 0, :, None], c[:, :, 1, :, None]
    x, z = (
        -(stages.first @ c1 + stages.second @ c2)[..., 0],
        -(stages.inner_first @ c1 + stages.inner_second @ c2)[..., 0],
    )
    for k in range(1, c.shape[1]):
        x[:, k] += (stages.by[:, k, :, :N_X] @ x[:, k - 1, :, None])[..., 0]
    z[:, 1:] += (stages.inner_by[:, 1:, :, :N_X] @ x[:, :-1, :, None])[..., 0]
    return z, x


def costates(stages: Stages, end: np.ndarray, path: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Multipliers of the equations.

    Args:
        stages: of S scenarios.
        end: [S, 13] gradient of targets and closing terms by the last state.
        path: [S, N, 13] gradient of the path limits' prices by x_{k+1}.

    Returns multipliers of c [S, N, 2, 13] and of the nodes [S, N, 13].
    """
    n = path.shape[1]
    p = np.empty_like(path)
    last = end
    back = np.swapaxes(stages.by[..., :N_X], -1, -2)
    for k in range(n - 1, -1, -1):
        p[:, k] = last = last + path[:, k]
        last = (back[:, k] @ last[..., None])[..., 0]
    mu1 = -np.einsum("skji,skj->ski", stages.first, p)
    mu2 = -np.einsum("skji,skj->ski", stages.second, p)
    return np.stack([mu1, mu2], axis=2), p


def quadratics(
    stages: Stages, hessians: np.ndarray, nodes: np.ndarray, pull: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The Lagrangian's curvature over (x_k, u_k): Hessians [S, N, 16, 16] and what the gaps add to gradients [S, N, 16].

    `hessians` [S, N, 2, 16, 16] are those at the two points; `nodes` [S, N, 13, 13] and `pull` [S, N, 13] are further
    Hessians and gradients in x_{k+1}.
    """
    total, linear = 0.0, (np.swapaxes(stages.by, -1, -2) @ pull[..., None])[..., 0]
    for i, (by, gap) in enumerate(((stages.inner_by, stages.inner_gap), (stages.by, stages.gap))):
        w = hessians[:, :, i]
        if i == 1:
            w = w.copy()
            w[..., :N_X, :N_X] += nodes
        t = np.concatenate([by, np.broadcast_to(_HELD, (*by.shape[:2], *_HELD.shape))], axis=2)
        back = np.swapaxes(t, -1, -2) @ w
        total = total + back @ t
        linear = linear + (back[..., :N_X] @ gap[..., None])[..., 0]
    return np.asarray(total), np.asarray(linear)


_HELD = np.concatenate([np.zeros((N_MOVE, N_X)), np.eye(N_MOVE)], axis=1)
