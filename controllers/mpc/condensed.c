#pragma GCC optimize("O3", "fp-contract=fast", "associative-math", "no-signed-zeros", "no-trapping-math")
#include <math.h>
#include <stdlib.h>
#include <string.h>

/*
 * The programme of condensed.py. A variable is a change of a move; those of a scenario stand from its last stage to its first, so
 * that the moves which scenarios share come last. A row is v + a'u <= s (path limits and closing rows, with slack s) or
 * v + a'u <= 0 (changes of perfusion, bounds of moves); t is what is left of it, l its multiplier, z that of its slack.
 */
#define FREE 1e-9 /* what a row without a price is given: multipliers lie between 0 and the price */
enum { A = MOVES, X = STATES, P = PATHS, W = A + X, F = W + A };

/* What is asked: arrays as in quadratic.Data */
typedef struct {
  const double *hess, *grad, *by, *gap, *moves, *before, *low, *high, *beyond, *beyond_by, *price, *square, *closing, *closing_by,
      *missed, *left;
  double furthest, step, volume, centre, tolerance, sloppy;
  long S, N, T, R, budget, most;
} Asked;
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
  long S, N, T, R;        /* scenarios, stages, closing rows, shared stages */
  long a, which[A];       /* moves that can change at all, and which they are */
  long n, c, rows, all;   /* variables of a scenario, common ones among them (the last), rows with slacks, all rows */
  double *h, *g;          /* [S, n, n] upper part, [S, n] */
  double *row;            /* [S, rows, n] a */
  double *v, *price, *square; /* [S, all] */
  double *k, *common, *rhs, *crhs; /* factors, the Schur complement of the common moves, right-hand sides */
  double *u, *du, *rd;    /* [S, n] */
  double *node, *flat, *wide; /* a state by the moves, where it comes to without them; a quadratic form's rows */
  double* memory;
  long* first;            /* [rows] first variable that a row holds */
  unsigned char *on, *fixed; /* [S, all] rows that are there; [S, n] moves without room */
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
      if (!j) continue;
      k[b * n + b] += f;
      if (!o->fixed[s * n + i] && !o->fixed[s * n + b]) k[i * n + b] -= f; /* a move without room is a number */
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
    for (long i = 0; i < o->n; ++i) if (o->fixed[s * o->n + i]) b[i] = 0.0; /* and stays where it is */
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

static void allocate(Work* o, const Asked* q) {
  long a = 0;
  for (long i = 0; i < A; ++i) {
    int room = 0;
    for (long k = 0; k < q->N; ++k) room |= q->high[k * A + i] > q->low[k * A + i];
    if (room) o->which[a++] = i;
  }
  o->S = q->S; o->N = q->N; o->T = q->T; o->R = q->S == 1 ? 0 : q->R < q->N ? q->R : q->N;
  o->a = a; o->n = o->N * a; o->c = o->R * a; o->rows = o->N * P + o->T; o->all = o->rows + 2 * o->N + 2 * o->n;
  long n = o->n, total = o->S * o->all;
  struct { double** at; size_t size; } parts[] = {
    {&o->h, o->S * n * n}, {&o->k, o->S * n * n}, {&o->row, o->S * o->rows * n}, {&o->g, o->S * n}, {&o->rhs, o->S * n},
    {&o->u, o->S * n}, {&o->du, o->S * n}, {&o->rd, o->S * n}, {&o->common, o->c * o->c}, {&o->crhs, o->c + 1},
    {&o->node, (o->N + 1) * X * n}, {&o->flat, (o->N + 1) * X}, {&o->wide, F * n},
    {&o->v, total}, {&o->price, total}, {&o->square, total}, {&o->r.y, total}, {&o->r.t, total}, {&o->r.l, total}, {&o->r.s, total},
    {&o->r.z, total}, {&o->r.dt, total}, {&o->r.dl, total}, {&o->r.ds, total}, {&o->r.dz, total}, {&o->r.f, total}, {&o->r.w, total},
    {&o->r.rt, total}, {&o->r.rl, total}, {&o->r.rz, total}, {&o->r.rs, total},
  };
  size_t count = sizeof parts / sizeof *parts, size = 1;
  for (size_t i = 0; i < count; ++i) size += parts[i].size;
  double* at = o->memory = calloc(size, sizeof(double));
  for (size_t i = 0; at && i < count; at += parts[i++].size) *parts[i].at = at;
  o->first = calloc(o->rows, sizeof(long));
  o->on = calloc(total + 1, 1);
  o->fixed = calloc(o->S * n + 1, 1);
}

/* the quadratic form of stage k, put on the moves */
static void condense_form(Work* o, const Asked* q, long s, long k) {
  long n = o->n, a = o->a, from = (o->N - k) * a, own = from - a; /* the node before holds variables from `from` on */
  const double *form = q->hess + (s * o->N + k) * F * F, *lin = q->grad + (s * o->N + k) * F;
  const double *x0 = o->node + k * X * n, *d0 = o->flat + k * X;
  const unsigned char* fixed = o->fixed + s * n;
  double *h = o->h + s * n * n, *g = o->g + s * n;
  for (long i = 0; i < F; ++i) {
    double *to = o->wide + i * n, constant = lin[i]; /* row i of the form on the moves */
    for (long l = own; l < n; ++l) to[l] = 0.0;
    for (long j = 0; j < X; ++j) {
      double f = form[i * F + A + j];
      constant += f * d0[j];
      if (f != 0.0) for (long l = from; l < n; ++l) to[l] += f * x0[j * n + l];
    }
    for (long j = 0; j < a; ++j) {
      if (!fixed[own + j]) to[own + j] += form[i * F + W + o->which[j]];
      if (k && !fixed[from + j]) to[from + j] += form[i * F + o->which[j]];
    }
    if (i >= A && i < W) { /* a state */
      const double* x = x0 + (i - A) * n;
      for (long p = from; p < n; ++p) {
        g[p] += x[p] * constant;
        for (long l = p; l < n; ++l) h[p * n + l] += x[p] * to[l];
      }
      continue;
    }
    for (long j = 0; j < a; ++j) { /* the move before, or the move */
      long p = (i < A ? from : own) + j;
      if (o->which[j] != (i < A ? i : i - W) || p >= n || fixed[p]) continue;
      g[p] += constant;
      for (long l = p; l < n; ++l) h[p * n + l] += to[l];
    }
  }
}

/* node k + 1 and its path limits by the moves */
static void condense_node(Work* o, const Asked* q, long s, long k) {
  long n = o->n, a = o->a, from = (o->N - k) * a, own = from - a, at = s * o->N + k;
  const double *B = q->by + at * X * W, *x0 = o->node + k * X * n, *d0 = o->flat + k * X;
  double *x1 = o->node + (k + 1) * X * n, *d1 = o->flat + (k + 1) * X;
  for (long i = 0; i < X; ++i) {
    double *to = x1 + i * n, c = q->gap[at * X + i];
    for (long l = own; l < n; ++l) to[l] = 0.0;
    for (long j = 0; j < X; ++j) {
      double f = B[i * W + j];
      c += f * d0[j];
      if (f != 0.0) for (long l = from; l < n; ++l) to[l] += f * x0[j * n + l];
    }
    for (long j = 0; j < a; ++j) to[own + j] = o->fixed[s * n + own + j] ? 0.0 : B[i * W + X + o->which[j]];
    d1[i] = c;
  }
  for (long r = 0; r < P; ++r) {
    const double* by = q->beyond_by + (at * P + r) * X;
    double *to = o->row + (s * o->rows + k * P + r) * n, c = q->beyond[at * P + r];
    for (long j = 0; j < X; ++j) {
      if (by[j] == 0.0) continue;
      c += by[j] * d1[j];
      for (long l = own; l < n; ++l) to[l] += by[j] * x1[j * n + l];
    }
    long i = s * o->all + k * P + r;
    o->v[i] = c; o->price[i] = q->price[at * P + r]; o->square[i] = q->square[at * P + r];
    o->first[k * P + r] = own;
  }
}

/* targets and closing terms by the moves; the medium spent is counted move by move */
static void condense_closing(Work* o, const Asked* q, long s) {
  long n = o->n, N = o->N;
  const double *x = o->node + N * X * n, *d = o->flat + N * X;
  for (long r = 0; r < o->T; ++r) {
    const double* by = q->closing_by + (s * o->T + r) * X;
    double *to = o->row + (s * o->rows + N * P + r) * n, c = q->closing[s * o->T + r];
    for (long j = 0; j < X; ++j) {
      c += by[j] * d[j];
      for (long l = 0; l < n; ++l) to[l] += by[j] * x[j * n + l];
    }
    if (r == q->budget) {
      c -= q->left[s];
      for (long k = 0; k < N; ++k) {
        long i = (N - 1 - k) * o->a;
        c += q->volume * q->moves[(s * N + k) * A];
        if (o->which[0] == 0 && !o->fixed[s * n + i]) to[i] += q->volume;
      }
    }
    o->v[s * o->all + N * P + r] = c;
    o->price[s * o->all + N * P + r] = fmax(q->missed[s * o->T + r], FREE);
  }
}

/* changes of perfusion and bounds of moves; those of shared moves stand in the first scenario */
static void limits(Work* o, const Asked* q, long s) {
  long n = o->n, N = o->N, a = o->a;
  const unsigned char* fixed = o->fixed + s * n;
  unsigned char* on = o->on + s * o->all;
  double *up = o->v + s * o->all + o->rows, *down = up + N, top = q->before[0], bottom = top;
  for (long k = 0; k < N; ++k) { top = fmax(top, q->high[k * A]); bottom = fmin(bottom, q->low[k * A]); }
  int limited = o->which[0] == 0 && q->step < top - bottom + 1e-9;
  for (long k = 0; k < N; ++k) {
    long i = (N - 1 - k) * a;
    double change = q->moves[(s * N + k) * A] - (k ? q->moves[(s * N + k - 1) * A] : q->before[0]);
    int room = !fixed[i] || (k && !fixed[i + a]);
    up[k] = change - q->step; down[k] = -change - q->step;
    on[o->rows + k] = on[o->rows + N + k] = limited && room && (s == 0 || k >= o->R);
  }
  up = down + N; down = up + n;
  for (long k = 0; k < N; ++k) for (long j = 0; j < a; ++j) {
    long i = (N - 1 - k) * a + j, at = k * A + o->which[j];
    double m = q->moves[(s * N + k) * A + o->which[j]];
    up[i] = -fmin(fmax(q->high[at] - m, 0.0), q->furthest); down[i] = fmax(fmin(q->low[at] - m, 0.0), -q->furthest);
    on[o->rows + 2 * N + i] = on[o->rows + 2 * N + n + i] = !fixed[i] && (s == 0 || k >= o->R);
  }
}

static void condense(Work* o, const Asked* q) {
  for (long s = 0; s < o->S; ++s) {
    memset(o->node, 0, sizeof(double) * X * o->n);
    memset(o->flat, 0, sizeof(double) * X);
    for (long k = 0; k < o->N; ++k) for (long j = 0; j < o->a; ++j) {
      long at = k * A + o->which[j];
      o->fixed[s * o->n + (o->N - 1 - k) * o->a + j] = !(q->high[at] - q->low[at] > 1e-12);
    }
    for (long k = 0; k < o->N; ++k) { condense_form(o, q, s, k); condense_node(o, q, s, k); }
    for (long i = 0; i < o->n; ++i) if (o->fixed[s * o->n + i]) o->h[(s * o->n + i) * o->n + i] = 1.0;
    condense_closing(o, q, s);
    memset(o->on + s * o->all, 1, o->rows);
    limits(o, q, s);
  }
}

/* slacks and multipliers at u = 0; how many pairs there are */
static double begin(Work* o, double centre) {
  Rows* r = &o->r;
  double pairs = 0.0;
  for (long i = 0; i < o->S * o->all; ++i) {
    if (!o->on[i]) continue;
    if (i % o->all < o->rows) {
      r->s[i] = central(o->v[i], o->price[i], o->square[i], centre);
      r->t[i] = fmax(r->s[i] - o->v[i], 1e-12);
      r->z[i] = centre / r->s[i];
      pairs += 1.0;
    } else r->t[i] = fmax(-o->v[i], 1e-2);
    r->l[i] = centre / r->t[i];
    pairs += 1.0;
  }
  return pairs;
}

typedef struct { double dual, primal, product, sum; int numbers; } Residuals; /* largest ones; sum of all products of pairs */

static Residuals residuals(Work* o) {
  long n = o->n, m = n - o->c;
  Rows* r = &o->r;
  Residuals e = {.numbers = 1};
  for (long s = 0; s < o->S; ++s) {
    const double *h = o->h + s * n * n, *u = o->u + s * n;
    double* rd = o->rd + s * n;
    memcpy(rd, o->g + s * n, sizeof(double) * n);
    for (long i = 0; i < n; ++i) {
      double x = h[i * n + i] * u[i], f = u[i];
      for (long l = i + 1; l < n; ++l) { x += h[i * n + l] * u[l]; rd[l] += h[i * n + l] * f; }
      rd[i] += x;
    }
    apply(o, s, u, r->y + s * o->all);
    transposed(o, s, r->l + s * o->all, rd); /* multipliers of rows that are not there are 0 */
    for (long i = 0; i < n; ++i) {
      if (o->fixed[s * n + i]) rd[i] = 0.0;
      e.numbers &= fabs(rd[i]) < 1e300; /* which is false of what is no number; fmax would pass over it */
      if (i < m) e.dual = fmax(e.dual, fabs(rd[i]));
    }
  }
  for (long i = m; i < n; ++i) { /* common moves answer to all scenarios together */
    double sum = 0.0;
    for (long s = 0; s < o->S; ++s) sum += o->rd[s * n + i];
    e.dual = fmax(e.dual, fabs(sum));
  }
  for (long i = 0; i < o->S * o->all; ++i) {
    if (!o->on[i]) continue;
    int soft = i % o->all < o->rows;
    double inverse = r->t[i] / r->l[i];
    r->rt[i] = o->v[i] + r->y[i] - (soft ? r->s[i] : 0.0) + r->t[i];
    r->rl[i] = r->l[i] * r->t[i];
    e.sum += r->rl[i];
    e.product = fmax(e.product, r->rl[i]);
    e.primal = fmax(e.primal, fabs(r->rt[i]));
    if (soft) {
      r->rs[i] = o->price[i] + 2.0 * o->square[i] * r->s[i] - r->l[i] - r->z[i];
      r->rz[i] = r->z[i] * r->s[i];
      e.sum += r->rz[i];
      e.product = fmax(e.product, r->rz[i]);
      e.dual = fmax(e.dual, fabs(r->rs[i]));
      inverse += 1.0 / (2.0 * o->square[i] + r->z[i] / r->s[i]);
    }
    r->w[i] = 1.0 / inverse;
  }
  return e;
}

/* one predictor and corrector; 0 where the matrix has no factor */
static int iterate(Work* o, double pairs, double sum) {
  long total = o->S * o->all;
  Rows* r = &o->r;
  if (!factorise(o)) return 0;
  direction(o);
  double alpha = longest(o), after = 0.0, mu = sum / pairs;
  for (long i = 0; i < total; ++i) {
    if (!o->on[i]) continue;
    after += (r->t[i] + alpha * r->dt[i]) * (r->l[i] + alpha * r->dl[i]);
    if (i % o->all < o->rows) after += (r->s[i] + alpha * r->ds[i]) * (r->z[i] + alpha * r->dz[i]);
  }
  double aim = mu * pow(after / sum, 3.0);
  for (long i = 0; i < total; ++i) {
    if (!o->on[i]) continue;
    r->rl[i] += r->dt[i] * r->dl[i] - aim;
    if (i % o->all < o->rows) r->rz[i] += r->ds[i] * r->dz[i] - aim;
  }
  direction(o);
  alpha = fmin(1.0, fmax(0.99, 1.0 - mu) * longest(o));
  for (long i = 0; i < o->S * o->n; ++i) o->u[i] += alpha * o->du[i];
  for (long i = 0; i < total; ++i) {
    if (!o->on[i]) continue;
    r->t[i] += alpha * r->dt[i]; r->l[i] += alpha * r->dl[i];
    if (i % o->all < o->rows) { r->s[i] += alpha * r->ds[i]; r->z[i] += alpha * r->dz[i]; }
  }
  return 1;
}

/* multiplier of a row that binds: on its way to 0, the other of the pair is larger */
static double pressed(const Rows* r, long i) { return r->l[i] > r->t[i] ? r->l[i] : 0.0; }

/* 0 solved, 1 the last digits did not come, 2 no step */
long condensed(const double* hess, const double* grad, const double* by, const double* gap, const double* moves, const double* before,
               const double* low, const double* high, const double* beyond, const double* beyond_by, const double* price,
               const double* square, const double* closing, const double* closing_by, const double* missed, const double* left,
               double furthest, double step, double volume, double centre, double tolerance, double sloppy, long S, long N, long T,
               long R, long budget, long most, double* out_u, double* out_x, double* out_slack, double* out_missed,
               double* out_path, double* out_closing, double* out_pressed, double* out_stepped, double* out_iterations) {
  Asked q = {hess, grad, by, gap, moves, before, low, high, beyond, beyond_by, price, square, closing, closing_by, missed, left,
             furthest, step, volume, centre, tolerance, sloppy, S, N, T, R, budget, most};
  Work o = {0};
  Rows* r = &o.r;
  long code = 2, it = 0;
  allocate(&o, &q);
  if (!o.memory || !o.first || !o.on || !o.fixed || o.a == 0) goto end;
  condense(&o, &q);
  double pairs = begin(&o, centre);
  Residuals e;
  for (;; ++it) {
    e = residuals(&o);
    if (!e.numbers || !(e.dual < 1e300) || !(e.primal < 1e300) || !(e.sum < 1e300)) goto end;
    if (e.dual <= tolerance && e.primal <= tolerance && e.product <= tolerance) { code = 0; break; }
    if (it == most || !iterate(&o, pairs, e.sum)) break;
  }
  if (code) { if (it > 0 && e.dual <= sloppy && e.primal <= sloppy && e.product <= sloppy) code = 1; else goto end; }
  *out_iterations = (double)it;
  for (long s = 0; s < S; ++s) {
    double *u = o.u + s * o.n, *y = r->y + s * o.all, now[X] = {0}, next[X];
    for (long k = 0; k < N; ++k) {
      double* m = out_u + (s * N + k) * A;
      long from = (k < o.R ? 0 : s) * o.all + o.rows;
      for (long i = 0; i < A; ++i) m[i] = out_pressed[(s * N + k) * A + i] = 0.0;
      for (long j = 0; j < o.a; ++j) {
        long i = (N - 1 - k) * o.a + j, up = from + 2 * N + i;
        m[o.which[j]] = u[i];
        out_pressed[(s * N + k) * A + o.which[j]] = pressed(r, up) + pressed(r, up + o.n);
      }
      out_stepped[s * N + k] = pressed(r, from + k) + pressed(r, from + N + k);
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
    /* slacks as small as the rows allow: where a price is next to nothing, theirs are not determined */
    apply(&o, s, u, y);
    for (long i = 0; i < o.rows; ++i) {
      double past = fmax(o.v[s * o.all + i] + y[i], 0.0);
      if (i < N * P) out_slack[s * N * P + i] = past; else out_missed[s * T + i - N * P] = past;
    }
    memcpy(out_path + s * N * P, r->l + s * o.all, sizeof(double) * N * P);
    memcpy(out_closing + s * T, r->l + s * o.all + N * P, sizeof(double) * T);
  }
end:
  free(o.memory); free(o.first); free(o.on); free(o.fixed);
  return code;
}
