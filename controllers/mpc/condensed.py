"""The quadratic programme of one iteration in its moves alone, by a primal-dual interior point in machine code.

Nodes are eliminated along the stages (condensing), slacks row by row, so that what is factorised has a row per move: 48 of 24
stages and two pumps, where `quadratic` has several hundred. Scenarios are factorised one by one, with the moves they share
last, and meet in the Schur complement of these (an arrow). Every limit is looked at, near or far.

The programme over a scenario's moves u, weights already in its numbers:

    min  u'Hu/2 + g'u + sum_r (c_r s_r + q_r s_r^2)    with  v_r + a_r'u <= s_r,  s_r >= 0;  l <= u <= h;  |change| <= step

It begins where slacks and multipliers are central for u = 0 (a step of 0 changes nothing) and takes Mehrotra's predictor and
corrector. `quadratic` solves the same programme with PIQP: where no compiler is found, and where this one does not come to an
end; each is the other's oracle in the tests.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import numpy as np

from controllers.mpc.objective import N_CLOSING, N_PATH
from controllers.mpc.quadratic import HELD, SLOPPY, TOLERANCE, Data, Step, held_moves
from controllers.mpc.transcription import N_MOVE
from twin.native.build import address, load
from twin.transition import N_X

MOST = 40
"""Interior-point iterations allowed."""

CENTRE = 0.1, 1e-3
"""Complementarity it begins with [cost]: far from a solution, and near one."""

SOURCE = (
    r"""
#pragma GCC optimize("O3", "fp-contract=fast", "associative-math", "no-signed-zeros", "no-trapping-math")
#include <math.h>
#include <stdlib.h>
#include <string.h>
enum { A = MOVES, X = STATES, P = PATHS, W = A + X, F = W + A };
typedef struct { double *y, *t, *l, *s, *z, *dt, *dl, *ds, *dz, *f, *w, *rt, *rl, *rz, *rs; } Rows;

/* of v + y <= s, s >= 0 at the price c s + q s^2: s with mu/(s - v) + mu/s = c + 2 q s; t = s - v */
static double central(double v, double c, double q, double mu) {
  double low = v > 0.0 ? v : 0.0, s = low + mu / (c + 2.0 * q * low) + 1e-12;
  for (int i = 0; i < 60; ++i) {
    double t = s - v, e = mu / t + mu / s - c - 2.0 * q * s, d = -mu / (t * t) - mu / (s * s) - 2.0 * q, n = s - e / d;
    if (!(n > low)) n = 0.5 * (s + low);
    if (fabs(n - s) <= 1e-10 * s) return n;
    s = n;
  }
  return s;
}

/* upper Cholesky factor in place of the first m of n rows of the symmetric k; what is left is the Schur complement */
static int factor(double* k, long n, long m) {
  enum { B = 4 }; /* rows that are taken off the rest together */
  for (long b = 0; b < m; b += B) {
    long end = b + B < m ? b + B : m;
    for (long j = b; j < end; ++j) {
      double* u = k + j * n;
      for (long p = b; p < j; ++p) {
        double f = k[p * n + j];
        for (long l = j; l < n; ++l) u[l] -= f * k[p * n + l];
      }
      if (!(u[j] > 0.0) || !(u[j] < 1e300)) return 0;
      double d = 1.0 / sqrt(u[j]);
      for (long l = j; l < n; ++l) u[l] *= d;
    }
    if (end - b < B) {
      for (long p = b; p < end; ++p)
        for (long i = end; i < n; ++i) for (long l = i; l < n; ++l) k[i * n + l] -= k[p * n + i] * k[p * n + l];
      continue;
    }
    const double *u0 = k + b * n, *u1 = u0 + n, *u2 = u1 + n, *u3 = u2 + n;
    for (long i = end; i < n; ++i) {
      double f0 = u0[i], f1 = u1[i], f2 = u2[i], f3 = u3[i], *o = k + i * n;
      for (long l = i; l < n; ++l) o[l] -= f0 * u0[l] + f1 * u1[l] + f2 * u2[l] + f3 * u3[l];
    }
  }
  return 1;
}
static void forward(const double* k, long n, long m, double* b) {
  for (long j = 0; j < m; ++j) {
    const double* u = k + j * n;
    b[j] /= u[j];
    for (long l = j + 1; l < n; ++l) b[l] -= u[l] * b[j];
  }
}
static void backward(const double* k, long n, long m, double* b) {
  for (long j = m - 1; j >= 0; --j) {
    const double* u = k + j * n;
    double a = b[j];
    for (long l = j + 1; l < n; ++l) a -= u[l] * b[l];
    b[j] = a / u[j];
  }
}

typedef struct {
  long S, N, T, R, a, n, c, rows, all; /* a active moves, n variables, c common ones at the end, rows with slacks, all rows */
  double *h, *g, *k, *rhs, *u, *du, *rd, *row, *common, *crhs;
  long* first; /* [rows] first variable of a row */
  double *v, *price, *square;
  unsigned char* on; /* [S, all] rows that are there */
  Rows r;
} Work;

/* y = A u of scenario s; rows: with slacks, changes of perfusion up and down, moves up and down */
static void apply(const Work* o, long s, const double* u, double* y) {
  const double* row = o->row + s * o->rows * o->n;
  for (long r = 0; r < o->rows; ++r) {
    double a = 0.0;
    for (long i = o->first[r]; i < o->n; ++i) a += row[r * o->n + i] * u[i];
    y[r] = a;
  }
  double *up = y + o->rows, *down = up + o->N;
  for (long k = 0; k < o->N; ++k) {
    double d = u[(o->N - 1 - k) * o->a] - (k ? u[(o->N - k) * o->a] : 0.0);
    up[k] = d; down[k] = -d;
  }
  up = down + o->N; down = up + o->n;
  for (long i = 0; i < o->n; ++i) { up[i] = u[i]; down[i] = -u[i]; }
}
/* out += A' x */
static void transposed(const Work* o, long s, const double* x, double* out) {
  const double* row = o->row + s * o->rows * o->n;
  for (long r = 0; r < o->rows; ++r) if (x[r] != 0.0)
    for (long i = o->first[r]; i < o->n; ++i) out[i] += row[r * o->n + i] * x[r];
  const double *up = x + o->rows, *down = up + o->N;
  for (long k = 0; k < o->N; ++k) {
    double d = up[k] - down[k];
    out[(o->N - 1 - k) * o->a] += d;
    if (k) out[(o->N - k) * o->a] -= d;
  }
  up = down + o->N; down = up + o->n;
  for (long i = 0; i < o->n; ++i) out[i] += up[i] - down[i];
}
/* k += sum_r w_r a_r a_r', upper part: the path rows of one stage, from variable `from` on */
static void squares(double* k, long n, long from, const double* a, const double* w) {
  for (long i = from; i < n; ++i) {
    double f[P], *to = k + i * n, any = 0.0;
    for (int r = 0; r < P; ++r) { f[r] = w[r] * a[r * n + i]; any += fabs(f[r]); }
    if (any == 0.0) continue;
    for (long l = i; l < n; ++l) {
      double x = to[l];
      for (int r = 0; r < P; ++r) x += f[r] * a[r * n + l];
      to[l] = x;
    }
  }
}
static void square(double* k, long n, const double* a, double w) {
  for (long i = 0; i < n; ++i) {
    double f = w * a[i];
    for (long l = i; l < n; ++l) k[i * n + l] += f * a[l];
  }
}
/* factors of H + A'wA of all scenarios, joined in their common moves */
static int factorise(Work* o) {
  long n = o->n, m = n - o->c;
  memset(o->common, 0, sizeof(double) * o->c * o->c);
  for (long s = 0; s < o->S; ++s) {
    double *k = o->k + s * n * n, *w = o->r.w + s * o->all;
    const double* row = o->row + s * o->rows * n;
    memcpy(k, o->h + s * n * n, sizeof(double) * n * n);
    for (long j = 0; j < o->N; ++j) squares(k, n, o->first[j * P], row + j * P * n, w + j * P);
    for (long r = o->N * P; r < o->rows; ++r) square(k, n, row + r * n, w[r]);
    double *up = w + o->rows, *down = up + o->N;
    for (long j = 0; j < o->N; ++j) {
      double f = up[j] + down[j];
      long i = (o->N - 1 - j) * o->a, b = i + o->a;
      k[i * n + i] += f;
      if (j) { k[b * n + b] += f; k[i * n + b] -= f; }
    }
    up = down + o->N; down = up + n;
    for (long i = 0; i < n; ++i) k[i * n + i] += up[i] + down[i];
    if (!factor(k, n, m)) return 0;
    for (long i = 0; i < o->c; ++i) for (long l = i; l < o->c; ++l) o->common[i * o->c + l] += k[(m + i) * n + m + l];
  }
  return factor(o->common, o->c, o->c);
}
static void solve(Work* o) { /* rhs [S, n] -> du */
  long n = o->n, m = n - o->c;
  memset(o->crhs, 0, sizeof(double) * (o->c + 1));
  for (long s = 0; s < o->S; ++s) {
    double* b = o->rhs + s * n;
    forward(o->k + s * n * n, n, m, b);
    for (long i = 0; i < o->c; ++i) o->crhs[i] += b[m + i];
  }
  forward(o->common, o->c, o->c, o->crhs);
  backward(o->common, o->c, o->c, o->crhs);
  for (long s = 0; s < o->S; ++s) {
    double *b = o->rhs + s * n;
    memcpy(b + m, o->crhs, sizeof(double) * o->c);
    backward(o->k + s * n * n, n, m, b);
  }
  memcpy(o->du, o->rhs, sizeof(double) * o->S * n);
}
/* Newton's direction for the residuals as they stand */
static void direction(Work* o) {
  long total = o->S * o->all;
  Rows* r = &o->r;
  for (long i = 0; i < total; ++i) {
    if (!o->on[i]) { r->f[i] = 0.0; continue; }
    double f = r->rt[i] - r->rl[i] / r->l[i];
    if (i % o->all < o->rows) f += (r->rs[i] + r->rz[i] / r->s[i]) / (2.0 * o->square[i] + r->z[i] / r->s[i]);
    r->f[i] = f;
    r->dl[i] = -r->w[i] * f; /* for the right-hand side */
  }
  for (long s = 0; s < o->S; ++s) {
    double* b = o->rhs + s * o->n;
    for (long i = 0; i < o->n; ++i) b[i] = -o->rd[s * o->n + i];
    for (long i = s * o->all; i < (s + 1) * o->all; ++i) if (!o->on[i]) r->dl[i] = 0.0;
    transposed(o, s, r->dl + s * o->all, b);
  }
  solve(o);
  for (long s = 0; s < o->S; ++s) apply(o, s, o->du + s * o->n, r->dt + s * o->all);
  for (long i = 0; i < total; ++i) {
    if (!o->on[i]) continue;
    double dl = r->w[i] * (r->dt[i] + r->f[i]);
    r->dl[i] = dl;
    r->dt[i] = (-r->rl[i] - r->t[i] * dl) / r->l[i];
    if (i % o->all < o->rows) {
      r->ds[i] = (dl - r->rs[i] - r->rz[i] / r->s[i]) / (2.0 * o->square[i] + r->z[i] / r->s[i]);
      r->dz[i] = (-r->rz[i] - r->z[i] * r->ds[i]) / r->s[i];
    }
  }
}
static double longest(const Work* o) {
  double alpha = 1.0;
  const Rows* r = &o->r;
  for (long i = 0; i < o->S * o->all; ++i) {
    if (!o->on[i]) continue;
    if (r->t[i] + alpha * r->dt[i] < 0.0) alpha = -r->t[i] / r->dt[i];
    if (r->l[i] + alpha * r->dl[i] < 0.0) alpha = -r->l[i] / r->dl[i];
    if (i % o->all < o->rows) {
      if (r->s[i] + alpha * r->ds[i] < 0.0) alpha = -r->s[i] / r->ds[i];
      if (r->z[i] + alpha * r->dz[i] < 0.0) alpha = -r->z[i] / r->dz[i];
    }
  }
  return alpha;
}

/* multiplier of a row that binds: on its way to 0, the other of the pair is larger */
static double pressed(const Rows* r, long i) { return r->l[i] > r->t[i] ? r->l[i] : 0.0; }

/* 0 solved, 1 the last digits did not come, 2 no step */
long condensed(const double* hess, const double* grad, const double* by, const double* gap, const double* moves, const double* before,
               const double* low, const double* high, const double* beyond, const double* beyond_by, const double* path_price,
               const double* path_square, const double* closing, const double* closing_by, const double* missed, const double* left,
               double furthest, double step, double volume, double centre, double tolerance, double sloppy, long S, long N, long T, long R,
               long budget, long most, double* out_u, double* out_x, double* out_slack, double* out_missed, double* out_path,
               double* out_closing, double* out_pressed, double* out_stepped, double* out_info) {
  long which[A], a = 0;
  for (long i = 0; i < A; ++i) {
    int free_ = 0;
    for (long k = 0; k < N; ++k) free_ |= high[k * A + i] > low[k * A + i];
    if (free_) which[a++] = i;
  }
  if (a == 0) return 2;
  if (S == 1) R = 0;
  Work o = { .S = S, .N = N, .T = T, .R = R, .a = a, .n = N * a, .c = R * a, .rows = N * P + T, .all = N * P + T + 2 * N + 2 * N * a };
  long n = o.n, rows = o.rows, all = o.all, total = S * all;
  size_t size = 2 * S * n * n + S * rows * n + 8 * S * n + o.c * o.c + o.c + 1 + 18 * total + (N + 1) * X * (n + 1) + F * n + 64;
  double* memory = calloc(size, sizeof(double));
  long* first = calloc(rows, sizeof(long));
  unsigned char* on = calloc(total, 1);
  long code = 2;
  if (!memory || !first || !on) goto end;
  double* at = memory;
  #define TAKE(count) (at += (count), at - (count))
  o.h = TAKE(S * n * n); o.k = TAKE(S * n * n); o.g = TAKE(S * n); o.rhs = TAKE(S * n); o.u = TAKE(S * n); o.du = TAKE(S * n);
  o.rd = TAKE(S * n); o.row = TAKE(S * rows * n); o.common = TAKE(o.c * o.c); o.crhs = TAKE(o.c + 1);
  double* fixed = TAKE(S * n);
  o.v = TAKE(total); o.price = TAKE(total); o.square = TAKE(total);
  double** parts[] = { &o.r.y, &o.r.t, &o.r.l, &o.r.s, &o.r.z, &o.r.dt, &o.r.dl, &o.r.ds, &o.r.dz, &o.r.f, &o.r.w, &o.r.rt, &o.r.rl, &o.r.rz, &o.r.rs };
  for (int i = 0; i < 15; ++i) *parts[i] = TAKE(total);
  double *node = TAKE((N + 1) * X * n), *flat = TAKE((N + 1) * X), *wide = TAKE(F * n);
  o.first = first; o.on = on;
  double widest = 0.0;
  for (long k = 0; k < N; ++k) { double d = high[k * A] - low[k * A]; widest = d > widest ? d : widest; }
  for (long k = 0; k < N; ++k) {
    for (long r = 0; r < P; ++r) first[k * P + r] = (N - 1 - k) * a;
  }
  /* condensing */
  for (long s = 0; s < S; ++s) {
    double *h = o.h + s * n * n, *g = o.g + s * n, *row = o.row + s * rows * n, *v = o.v + s * all;
    memset(node, 0, sizeof(double) * X * n); memset(flat, 0, sizeof(double) * X);
    for (long k = 0; k < N; ++k) for (long i = 0; i < a; ++i)
      fixed[s * n + (N - 1 - k) * a + i] = !(high[k * A + which[i]] - low[k * A + which[i]] > 1e-12);
    for (long k = 0; k < N; ++k) {
      long from = (N - k) * a, own = from - a; /* of the node before: variables from `from`; of the stage: from `own` */
      const double *B = by + (s * N + k) * X * W, *e = gap + (s * N + k) * X;
      double *x0 = node + k * X * n, *x1 = x0 + X * n, *d0 = flat + k * X, *d1 = d0 + X;
      /* quadratic form of (last move, state, move): wide = form x directions, over variables from `own` */
      const double *form = hess + (s * N + k) * F * F, *lin = grad + (s * N + k) * F;
      for (long i = 0; i < F; ++i) {
        double* to = wide + i * n;
        for (long l = own; l < n; ++l) to[l] = 0.0;
        double constant = lin[i];
        for (long j = 0; j < X; ++j) {
          double f = form[i * F + A + j];
          constant += f * d0[j];
          const double* x = x0 + j * n;
          if (f != 0.0) for (long l = from; l < n; ++l) to[l] += f * x[l];
        }
        for (long j = 0; j < a; ++j) {
          if (!fixed[s * n + own + j]) to[own + j] += form[i * F + W + which[j]];
          if (k && !fixed[s * n + from + j]) to[from + j] += form[i * F + which[j]];
        }
        /* rows of the directions' transpose that direction i stands in */
        if (i < A || i >= W) {
          long m = i < A ? i : i - W, place = -1;
          for (long j = 0; j < a; ++j) if (which[j] == m) place = (i < A ? from : own) + j;
          if (place < 0 || place >= n || fixed[s * n + place]) continue;
          g[place] += constant;
          for (long l = place; l < n; ++l) h[place * n + l] += to[l];
        } else {
          const double* x = x0 + (i - A) * n;
          for (long p = from; p < n; ++p) {
            double f = x[p];
            g[p] += f * constant;
            for (long l = p; l < n; ++l) h[p * n + l] += f * to[l];
          }
        }
      }
      for (long i = 0; i < X; ++i) {
        double *to = x1 + i * n, c = e[i];
        for (long l = own; l < n; ++l) to[l] = 0.0;
        for (long j = 0; j < X; ++j) {
          double f = B[i * W + j];
          c += f * d0[j];
          if (f != 0.0) for (long l = from; l < n; ++l) to[l] += f * x0[j * n + l];
        }
        for (long j = 0; j < a; ++j) to[own + j] = fixed[s * n + own + j] ? 0.0 : B[i * W + X + which[j]];
        d1[i] = c;
      }
      for (long r = 0; r < P; ++r) {
        const double* q = beyond_by + ((s * N + k) * P + r) * X;
        double *to = row + (k * P + r) * n, c = beyond[(s * N + k) * P + r];
        for (long j = 0; j < X; ++j) {
          if (q[j] == 0.0) continue;
          c += q[j] * d1[j];
          for (long l = own; l < n; ++l) to[l] += q[j] * x1[j * n + l];
        }
        v[k * P + r] = c;
        o.price[s * all + k * P + r] = path_price[(s * N + k) * P + r];
        o.square[s * all + k * P + r] = path_square[(s * N + k) * P + r];
      }
    }
    for (long i = 0; i < n; ++i) if (fixed[s * n + i]) h[i * n + i] = 1.0;
    const double *x = node + N * X * n, *d = flat + N * X;
    for (long r = 0; r < T; ++r) {
      const double* q = closing_by + (s * T + r) * X;
      double *to = row + (N * P + r) * n, c = closing[s * T + r];
      for (long j = 0; j < X; ++j) {
        c += q[j] * d[j];
        for (long l = 0; l < n; ++l) to[l] += q[j] * x[j * n + l];
      }
      if (r == budget) {
        c -= left[s];
        for (long k = 0; k < N; ++k) {
          c += volume * moves[(s * N + k) * A];
          long i = (N - 1 - k) * a;
          if (which[0] == 0 && !fixed[s * n + i]) to[i] += volume;
        }
      }
      v[N * P + r] = c;
      o.price[s * all + N * P + r] = missed[s * T + r];
    }
    unsigned char* there = on + s * all;
    memset(there, 1, rows);
    double *up = v + rows, *down = up + N;
    int steps = which[0] == 0 && step < widest + 1e-9;
    for (long k = 0; k < N; ++k) {
      double was = k ? moves[(s * N + k - 1) * A] : before[0], change = moves[(s * N + k) * A] - was;
      up[k] = change - step; down[k] = -change - step;
      long i = (N - 1 - k) * a;
      int moving = !fixed[s * n + i] || (k && !fixed[s * n + i + a]);
      there[rows + k] = there[rows + N + k] = steps && moving && (s == 0 || k >= R);
    }
    up = down + N; down = up + n;
    for (long k = 0; k < N; ++k) for (long j = 0; j < a; ++j) {
      long i = (N - 1 - k) * a + j;
      double m = moves[(s * N + k) * A + which[j]], l = low[k * A + which[j]] - m, h_ = high[k * A + which[j]] - m;
      up[i] = -fmin(fmax(h_, 0.0), furthest); down[i] = fmax(fmin(l, 0.0), -furthest);
      there[rows + 2 * N + i] = there[rows + 2 * N + n + i] = !fixed[s * n + i] && (s == 0 || k >= R);
    }
  }
  /* where it begins */
  Rows* r = &o.r;
  double pairs = 0.0;
  for (long i = 0; i < total; ++i) {
    if (!on[i]) continue;
    if (i % all < rows) {
      double c = o.price[i], q = o.square[i], s = central(o.v[i], c, q, centre);
      r->s[i] = s; r->t[i] = s - o.v[i];
      if (!(r->t[i] > 0.0)) r->t[i] = 1e-12;
      r->l[i] = centre / r->t[i]; r->z[i] = centre / s;
      pairs += 2.0;
    } else {
      double t = -o.v[i];
      r->t[i] = t > 1e-2 ? t : 1e-2;
      r->l[i] = centre / r->t[i];
      pairs += 1.0;
    }
  }
  double worst_dual = 0.0, worst = 0.0, mu = 0.0;
  long it = 0;
  for (; it <= most; ++it) {
    worst_dual = worst = mu = 0.0;
    double product = 0.0;
    for (long s = 0; s < S; ++s) {
      double *h = o.h + s * n * n, *u = o.u + s * n, *rd = o.rd + s * n;
      memcpy(rd, o.g + s * n, sizeof(double) * n);
      for (long i = 0; i < n; ++i) {
        double x = h[i * n + i] * u[i], f = u[i];
        for (long l = i + 1; l < n; ++l) { x += h[i * n + l] * u[l]; rd[l] += h[i * n + l] * f; }
        rd[i] += x;
      }
      apply(&o, s, u, r->y + s * all);
      transposed(&o, s, r->l + s * all, rd); /* multipliers of rows that are not there are 0 */
      if (o.c) continue;
      for (long i = 0; i < n; ++i) worst_dual = fmax(worst_dual, fixed[s * n + i] ? 0.0 : fabs(rd[i]));
    }
    if (o.c) {
      for (long i = 0; i < n; ++i) {
        double sum = 0.0;
        for (long s = 0; s < S; ++s) {
          if (i < n - o.c) worst_dual = fmax(worst_dual, fixed[s * n + i] ? 0.0 : fabs(o.rd[s * n + i]));
          else sum += o.rd[s * n + i];
        }
        if (i >= n - o.c) worst_dual = fmax(worst_dual, fixed[i] ? 0.0 : fabs(sum));
      }
    }
    for (long s = 0; s < S; ++s) for (long i = 0; i < n; ++i) if (fixed[s * n + i]) o.rd[s * n + i] = 0.0;
    for (long i = 0; i < total; ++i) {
      if (!on[i]) continue;
      int soft = i % all < rows;
      r->rt[i] = o.v[i] + r->y[i] - (soft ? r->s[i] : 0.0) + r->t[i];
      r->rl[i] = r->l[i] * r->t[i];
      mu += r->rl[i];
      product = fmax(product, r->rl[i]);
      double inverse = r->t[i] / r->l[i];
      if (soft) {
        r->rs[i] = o.price[i] + 2.0 * o.square[i] * r->s[i] - r->l[i] - r->z[i];
        r->rz[i] = r->z[i] * r->s[i];
        mu += r->rz[i];
        product = fmax(product, r->rz[i]);
        worst_dual = fmax(worst_dual, fabs(r->rs[i]));
        inverse += 1.0 / (2.0 * o.square[i] + r->z[i] / r->s[i]);
      }
      worst = fmax(worst, fabs(r->rt[i]));
      r->w[i] = 1.0 / inverse;
    }
    mu /= pairs;
    if (!(worst_dual < 1e300) || !(worst < 1e300) || !(mu < 1e300)) goto end;
    if (worst_dual <= tolerance && worst <= tolerance && product <= tolerance) { code = 0; break; }
    if (it == most || !factorise(&o)) break;
    direction(&o);
    double alpha = longest(&o), after = 0.0;
    for (long i = 0; i < total; ++i) {
      if (!on[i]) continue;
      after += (r->t[i] + alpha * r->dt[i]) * (r->l[i] + alpha * r->dl[i]);
      if (i % all < rows) after += (r->s[i] + alpha * r->ds[i]) * (r->z[i] + alpha * r->dz[i]);
    }
    double sigma = after / pairs / mu;
    sigma = sigma * sigma * sigma;
    for (long i = 0; i < total; ++i) {
      if (!on[i]) continue;
      r->rl[i] += r->dt[i] * r->dl[i] - sigma * mu;
      if (i % all < rows) r->rz[i] += r->ds[i] * r->dz[i] - sigma * mu;
    }
    direction(&o);
    alpha = fmin(1.0, fmax(0.99, 1.0 - mu) * longest(&o));
    for (long i = 0; i < S * n; ++i) o.u[i] += alpha * o.du[i];
    for (long i = 0; i < total; ++i) {
      if (!on[i]) continue;
      r->t[i] += alpha * r->dt[i]; r->l[i] += alpha * r->dl[i];
      if (i % all < rows) { r->s[i] += alpha * r->ds[i]; r->z[i] += alpha * r->dz[i]; }
    }
  }
  if (code && worst_dual <= sloppy && worst <= sloppy) code = 1;
  out_info[0] = (double)it; out_info[1] = worst_dual; out_info[2] = worst; out_info[3] = mu;
  for (long s = 0; s < S; ++s) {
    double *u = o.u + s * n, now[X] = {0}, next[X];
    for (long k = 0; k < N; ++k) {
      double* m = out_u + (s * N + k) * A;
      for (long i = 0; i < A; ++i) m[i] = 0.0;
      for (long j = 0; j < a; ++j) {
        long i = (N - 1 - k) * a + j, from = k < R ? 0 : s;
        m[which[j]] = u[i];
        long up = from * all + rows + 2 * N + i;
        out_pressed[(s * N + k) * A + which[j]] = pressed(r, up) + pressed(r, up + n);
      }
      long up = (k < R ? 0 : s) * all + rows + k;
      out_stepped[s * N + k] = pressed(r, up) + pressed(r, up + N);
      const double* B = by + (s * N + k) * X * W;
      for (long i = 0; i < X; ++i) {
        double c = gap[(s * N + k) * X + i];
        for (long j = 0; j < X; ++j) c += B[i * W + j] * now[j];
        for (long j = 0; j < A; ++j) c += B[i * W + X + j] * m[j];
        next[i] = c;
      }
      memcpy(now, next, sizeof now);
      memcpy(out_x + (s * N + k) * X, now, sizeof now);
    }
    memcpy(out_path + s * N * P, r->l + s * all, sizeof(double) * N * P);
    /* slacks as small as the rows allow: where a price is next to nothing, theirs are not determined */
    apply(&o, s, u, r->y + s * all);
    for (long i = 0; i < rows; ++i) {
      double past = fmax(o.v[s * all + i] + r->y[s * all + i], 0.0);
      if (i < N * P) out_slack[s * N * P + i] = past; else out_missed[s * T + i - N * P] = past;
    }
    memcpy(out_closing + s * T, r->l + s * all + N * P, sizeof(double) * T);
  }
end:
  free(memory); free(first); free(on);
  return code;
}
""".replace("MOVES", str(N_MOVE))
    .replace("STATES", str(N_X))
    .replace("PATHS", str(N_PATH))
)


@cache
def _entry() -> Any | None:
    library = load("celltwin_mpc_condensed", SOURCE, vector=True)
    if library is None:
        return None
    entry = library.condensed
    entry.argtypes = [ctypes.c_void_p] * 16 + [ctypes.c_double] * 6 + [ctypes.c_long] * 6 + [ctypes.c_void_p] * 9
    entry.restype = ctypes.c_long
    return entry


def solve_condensed(d: Data, shared: int, near: bool = True) -> Step | str | None:
    """The step, a word for why there is none, or None where no compiler is found; as `quadratic.solve_quadratic`.

    `near`: the step is thought to be short, which only says where the iterations begin.
    """
    entry = _entry()
    if entry is None:
        return None
    s, n = d.beyond.shape[:2]
    t = d.closing.shape[1]
    given = [np.ascontiguousarray(a, dtype=float) for a in (
        d.hessians, d.gradients, d.by, d.gap, d.moves, d.before, d.low, d.high, d.beyond, d.beyond_by, d.slack, d.slack_square,
        d.closing, d.closing_by, d.missed, d.left,
    )]  # fmt: skip
    shapes = ((s, n, N_MOVE), (s, n, N_X), (s, n, N_PATH), (s, t), (s, n, N_PATH), (s, t), (s, n, N_MOVE), (s, n), (4,))
    out = [np.empty(shape) for shape in shapes]
    code = entry(
        *map(address, given), d.most, d.step, d.volume, CENTRE[near], TOLERANCE, SLOPPY,
        s, n, t, shared, t - N_CLOSING, MOST, *map(address, out),
    )  # fmt: skip
    if code == 2:
        return "no step"
    moves, nodes, slacks, missed, path, closing, pressed, stepped, info = out
    return Step(
        moves, nodes, slacks, missed, path, closing, held_moves(d, moves, pressed), stepped > HELD, code == 1, int(info[0])
    )  # fmt: skip
