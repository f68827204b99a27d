"""The curvature of the stages, made convex without moving the step.

The exact Hessian of the Lagrangian is made convex stage by stage (Verschueren et al., doi 10.1137/16M1081543): the quadratic
forms x'Px of a Riccati recursion, which cancel along the dynamics, are added. What is left is convex where the reduced Hessian
is; elsewhere the curvature in the moves is turned positive.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np

from controllers.mpc.stages import Stages
from controllers.mpc.transcription import N_MOVE
from twin.native.build import address, load
from twin.transition import N_X

CURVED = 1e-5
"""Least curvature that a direction of the moves is given [cost per scaled move squared]."""

STEEPEST = 10.0
"""Largest answer of a scaled move to a scaled state that a stage's curvature may ask for."""

N_STAGE = N_MOVE + N_X + N_MOVE
"""Directions of a stage's quadratic form: last move, state, move."""

SOURCE = r"""
#include <math.h>
#include <string.h>
enum { A = MOVES, X = STATES, M = A + X, F = M + A };
/* eigenvalues w and eigenvectors (columns of v) of the symmetric r, by Jacobi's rotations */
static void eigen(double r[A][A], double* w, double v[A][A]) {
  for (int i = 0; i < A; ++i) for (int j = 0; j < A; ++j) v[i][j] = i == j;
  for (int sweep = 0; sweep < 30; ++sweep) {
    double off = 0.0, on = 0.0;
    for (int i = 0; i < A; ++i) for (int j = 0; j < A; ++j) { if (i != j) off += r[i][j] * r[i][j]; else on += r[i][i] * r[i][i]; }
    if (!(off > 1e-32 * on)) break;
    for (int p = 0; p < A; ++p) for (int q = p + 1; q < A; ++q) {
      if (r[p][q] == 0.0) continue;
      double z = (r[q][q] - r[p][p]) / (2.0 * r[p][q]);
      double t = (z >= 0.0 ? 1.0 : -1.0) / (fabs(z) + sqrt(1.0 + z * z)), c = 1.0 / sqrt(1.0 + t * t), s = t * c;
      for (int i = 0; i < A; ++i) { double a = r[i][p], b = r[i][q]; r[i][p] = c * a - s * b; r[i][q] = s * a + c * b; }
      for (int i = 0; i < A; ++i) { double a = r[p][i], b = r[q][i]; r[p][i] = c * a - s * b; r[q][i] = s * a + c * b; }
      for (int i = 0; i < A; ++i) { double a = v[i][p], b = v[i][q]; v[i][p] = c * a - s * b; v[i][q] = s * a + c * b; }
    }
  }
  for (int i = 0; i < A; ++i) w[i] = r[i][i];
}
long convexify(double* h, double* g, const double* by, const double* gaps, const unsigned char* held,
               long scenarios, long n, double steepest, double curved) {
  long turned = 0;
  for (long s = 0; s < scenarios; ++s) {
    double p[M][M]; memset(p, 0, sizeof p);
    for (long k = n - 1; k >= 0; --k) {
      double (*full)[F] = (double (*)[F])(h + (s * n + k) * F * F);
      double* lin = g + (s * n + k) * F;
      const double (*b)[M] = (const double (*)[M])(by + (s * n + k) * X * M);
      const double* gap = gaps + (s * n + k) * X;
      const unsigned char* stay = held + (s * n + k) * A;
      double t[M][M], q[M];  /* p applied to (B A) and to the gap */
      for (int i = 0; i < M; ++i) {
        for (int j = 0; j < M; ++j) t[i][j] = 0.0;
        q[i] = 0.0;
        for (int l = 0; l < X; ++l) {
          double a = p[i][A + l];
          for (int j = 0; j < M; ++j) t[i][j] += a * b[l][j];
          q[i] += a * gap[l];
        }
      }
      for (int l = 0; l < X; ++l)
        for (int i = 0; i < M; ++i) {
          double a = b[l][i];
          for (int j = 0; j < M; ++j) full[A + i][A + j] += a * t[A + l][j];
          lin[A + i] += a * q[A + l];
        }
      for (int i = 0; i < A; ++i) {
        for (int j = 0; j < M; ++j) { full[M + i][A + j] += t[i][j]; full[A + j][M + i] += t[i][j]; }
        for (int j = 0; j < A; ++j) full[M + i][M + j] += p[i][j];
        lin[M + i] += q[i];
      }
      double r[A][A], cross[A][M], w[A], v[A][A], work[A][A], y[A][M];
      for (int i = 0; i < A; ++i) {
        for (int j = 0; j < A; ++j) r[i][j] = stay[i] || stay[j] ? (double)(i == j) : full[M + i][M + j];
        for (int j = 0; j < M; ++j) cross[i][j] = stay[i] ? 0.0 : full[M + i][j];
      }
      memcpy(work, r, sizeof r);
      eigen(work, w, v);
      int turn = 0;
      for (int i = 0; i < A; ++i) {
        double pull = 0.0;
        for (int j = 0; j < M; ++j) {
          double a = 0.0;
          for (int l = 0; l < A; ++l) a += v[l][i] * cross[l][j];
          y[i][j] = a;
          if (fabs(a) > pull) pull = fabs(a);
        }
        double least = pull / steepest > curved ? pull / steepest : curved;
        if (w[i] < least) { turn = 1; w[i] = fabs(w[i]) > least ? fabs(w[i]) : least; }
      }
      if (turn) {
        ++turned;
        for (int i = 0; i < A; ++i) for (int j = 0; j < A; ++j) {
          r[i][j] = 0.0;
          for (int l = 0; l < A; ++l) r[i][j] += v[i][l] * w[l] * v[j][l];
        }
      }
      for (int i = 0; i < M; ++i) for (int j = 0; j < M; ++j) {
        double kept = 0.0;
        for (int l = 0; l < A; ++l) kept += y[l][i] * y[l][j] / w[l];
        p[i][j] = full[i][j] - kept;
        full[i][j] = kept;
      }
      for (int i = 0; i < M; ++i) for (int j = 0; j < i; ++j) p[i][j] = p[j][i] = 0.5 * (p[i][j] + p[j][i]);
      for (int i = 0; i < A; ++i) {
        for (int j = 0; j < M; ++j) full[M + i][j] = full[j][M + i] = cross[i][j];
        for (int j = 0; j < A; ++j) full[M + i][M + j] = r[i][j];
      }
    }
  }
  return turned;
}
""".replace("MOVES", str(N_MOVE)).replace("STATES", str(N_X))


@cache
def _entry() -> Any | None:
    library = load("celltwin_mpc_convexify", SOURCE, vector=True)
    if library is None:
        return None
    entry = library.convexify
    entry.argtypes = [ctypes.c_void_p] * 5 + [ctypes.c_long] * 2 + [ctypes.c_double] * 2
    entry.restype = ctypes.c_long
    return entry


def convexify(
    stages: Stages,
    hessians: np.ndarray,
    linear: np.ndarray,
    rates: np.ndarray,
    held: np.ndarray,
    damping: float = 0.0,
    steepest: float = STEEPEST,
    compiled: bool = True,
) -> tuple[np.ndarray, np.ndarray, int]:
    """Convex quadratic forms over (u_{k-1}, x_k, u_k) that give the same step.

    Args:
        stages: of S scenarios.
        hessians: [S, N, 16, 16] over (x_k, u_k).
        linear: [S, N, 16].
        rates: [S, N, 3] prices of squared changes of scaled moves.
        held: [S, N, 3] moves that stay at their bounds: their curvature counts for nothing as long as they do.
        damping: curvature that every move is given besides.
        steepest: largest answer of a move to a state that is allowed.
        compiled: by machine code, where a compiler is found.

    Returns Hessians [S, N, 19, 19], gradients [S, N, 19], and how many stages were not convex in their moves.
    """
    s, n = hessians.shape[:2]
    a, m = N_MOVE, N_MOVE + N_X
    h = np.zeros((s, n, N_STAGE, N_STAGE))
    h[:, :, a:, a:] = hessians
    i = np.arange(a)
    h[:, :, i, i] += 2.0 * rates
    h[:, :, m + i, m + i] += 2.0 * rates
    h[:, :, m + i, m + i] += damping
    h[:, :, i, m + i] -= 2.0 * rates
    h[:, :, m + i, i] -= 2.0 * rates
    g = np.zeros((s, n, N_STAGE))
    g[:, :, a:] = linear
    entry = _entry() if compiled else None
    by, gaps = np.ascontiguousarray(stages.by), np.ascontiguousarray(stages.gap)
    if entry is None:
        return h, g, _interpreted(h, g, by, gaps, held, steepest)
    held = np.ascontiguousarray(held, dtype=np.uint8)
    return h, g, int(entry(*map(address, (h, g, by, gaps, held)), s, n, steepest, CURVED))


def _interpreted(
    h: np.ndarray, g: np.ndarray, by: np.ndarray, gaps: np.ndarray, held: np.ndarray, steepest: float
) -> int:
    """The recursion in NumPy, in place."""
    s, n = by.shape[:2]
    a, m = N_MOVE, N_MOVE + N_X
    i = np.arange(a)
    # (u_k, x_{k+1}) from (u_{k-1}, x_k, u_k)
    onward = np.zeros((s, n, m, N_STAGE))
    onward[:, :, i, m + i] = 1.0
    onward[:, :, a:, a:] = by
    gap = np.concatenate([np.zeros((s, n, a)), gaps], axis=2)[..., None]
    back = np.swapaxes(onward, -1, -2)
    p = np.zeros((s, m, m))
    turned = 0
    for k in range(n - 1, -1, -1):
        carried = back[:, k] @ p
        full = h[:, k] + carried @ onward[:, k]
        g[:, k] += (carried @ gap[:, k])[..., 0]
        r, cross = full[:, m:, m:], full[:, m:, :m]
        stay = held[:, k]
        if stay.any():
            r = np.where(stay[:, :, None] | stay[:, None, :], stay[:, :, None] * np.eye(a), r)
            cross = np.where(stay[:, :, None], 0.0, cross)
        values, vectors = np.linalg.eigh(r)
        pull = np.abs(np.swapaxes(vectors, -1, -2) @ cross).max(axis=-1)
        least = np.maximum(CURVED, pull / steepest)
        if (values < least).any():
            turned += 1
            r = (vectors * np.maximum(np.abs(values), least)[:, None, :]) @ np.swapaxes(vectors, -1, -2)
        kept = np.swapaxes(cross, -1, -2) @ np.linalg.solve(r, cross)
        p = full[:, :m, :m] - kept
        p = 0.5 * (p + np.swapaxes(p, -1, -2))
        h[:, k, :m, :m], h[:, k, m:, :m], h[:, k, m:, m:] = kept, cross, r
        h[:, k, :m, m:] = np.swapaxes(cross, -1, -2)
    return turned
