/* The closed flow of L layers on z (flows/intrinsic.py, kernels/divided.py), d <= LAYERED: its velocity, around the gradient at z.
   Matrices have rows of ld numbers, filled up with zeros. */

/* Where z = Ut^T diag(sigma) Vt, K and what it is made of are in a room. */
typedef struct {
    int d, ld;
    double *Ut, *Vt, *V, *K, *one, *two, *sigma, *shares, *rest; /* shares (2, L) */
} T(Factors);

static T(Factors) T(factors_in)(int d, const Layers *layers, double *room) {
    const int ld = LD(d);
    const long n = (long)ld * ld;
    double *sigma = room + 6 * n;
    return (T(Factors)){.d = d, .ld = ld, .Ut = room, .Vt = room + n, .V = room + 2 * n, .K = room + 3 * n, .one = room + 4 * n,
                        .two = room + 5 * n, .sigma = sigma, .shares = sigma + ld, .rest = sigma + ld + 2 * layers->L};
}

/* The inner product of two rows. */
INLINE double T(inner)(int ld, const double *x, const double *y) {
    four sum = *(const four *)x * *(const four *)y;
    UNROLL for (int k = 4; k < ld; k += 4) sum += *(const four *)(x + k) * *(const four *)(y + k);
    return (sum[0] + sum[2]) + (sum[1] + sum[3]);
}

/* Two rows become c x - s y and s x + c y. */
INLINE void T(turn_rows)(int ld, double c, double s, double *x, double *y) {
    UNROLL for (int k = 0; k < ld; k += 4) {
        const four one = *(four *)(x + k), other = *(four *)(y + k);
        *(four *)(x + k) = c * one - s * other, *(four *)(y + k) = s * one + c * other;
    }
}

/* Rotations of the rows of A (d, d), and of those of Ut with them, until they are orthogonal to each other, however
   long they are: so their lengths, the singular values, keep their relative accuracy. Returns 1 where they do not come to an end. */
INLINE int T(turned_apart)(int d, int ld, double *A, double *Ut) {
    const int n = d + d % 2;
    for (int sweep = 0; sweep < 30; sweep++) {
        int wide = 0;
        for (int round = 0; round < n - 1; round++) {
            int p[LAYERED / 2], q[LAYERED / 2], count = 0, turns = 0;
            double c[LAYERED / 2], s[LAYERED / 2];
            for (int i = 0; i < n / 2; i++) {
                opposed(n, round, i, p + count, q + count);
                if (p[count] < d) count++;
            }
            for (int i = 0; i < count; i++) {
                const double *x = A + p[i] * ld, *y = A + q[i] * ld;
                const double a = T(inner)(ld, x, y), one = T(inner)(ld, x, x), other = T(inner)(ld, y, y);
                const double gap = other - one, size = fabs(gap) + sqrt(gap * gap + 4 * a * a);
                const double t = size == 0 ? 0 : (gap < 0 ? -2 : 2) * a / size;
                c[i] = 1 / sqrt(1 + t * t), s[i] = t * c[i];
                turns |= a * a > 16 * DBL_EPSILON * DBL_EPSILON * one * other && one > LEAST && other > LEAST;
            }
            wide |= turns;
            for (int i = 0; turns && i < count; i++) {
                T(turn_rows)(ld, c[i], s[i], A + p[i] * ld, A + q[i] * ld);
                T(turn_rows)(ld, c[i], s[i], Ut + p[i] * ld, Ut + q[i] * ld);
            }
        }
        if (!wide) return 0;
    }
    return 1;
}

/* A row of X that is orthogonal to all others: of the unit vectors the one that they leave most of. */
static void T(completed)(int d, int ld, double *X, const int *known, int row) {
    double most = 0;
    for (int k = 0; k < d; k++) {
        double x[LAYERED] = {0};
        x[k] = 1;
        for (int i = 0; i < 2 * d; i++) { /* twice, for their round-off */
            const double *other = X + i % d * ld, share = known[i % d] ? T(inner)(ld, x, other) : 0;
            for (int j = 0; known[i % d] && j < d; j++) x[j] -= share * other[j];
        }
        const double square = T(inner)(ld, x, x);
        if (!(square > most)) continue;
        most = square;
        for (int j = 0; j < d; j++) X[row * ld + j] = x[j] / sqrt(square);
    }
}

/* z (d, d) in its factors, in no order. Returns 1 where they cannot be had. */
static int T(singular)(const T(Factors) *f, const double *z) {
    const int d = f->d, ld = f->ld;
    double largest = 0, sum = 0;
    for (int q = 0; q < d * d; q++) largest = fabs(z[q]) > largest ? fabs(z[q]) : largest, sum += 0 * z[q];
    if (sum != 0) return 1;
    int exponent, known[LAYERED];
    frexp(largest, &exponent);
    if (exponent < -1000) exponent = -1000;
    const double scale = ldexp(1, exponent), inverse = ldexp(1, -exponent);
    memset(f->Ut, 0, 3 * (long)ld * ld * sizeof(double));
    for (int i = 0; i < d; i++)
        for (int j = 0; j < d; j++) f->Vt[i * ld + j] = z[i * d + j] * inverse, f->Ut[i * ld + j] = i == j;
    for (int i = 0; i < d; i++) {
        const double square = T(inner)(ld, f->Vt + i * ld, f->Vt + i * ld);
        if (square != 0 && square <= LEAST) return 1;
    }
    if (BY_ROWS(T(turned_apart), d, ld, f->Vt, f->Ut)) return 1;
    for (int i = 0; i < d; i++) {
        const double square = T(inner)(ld, f->Vt + i * ld, f->Vt + i * ld), length = sqrt(square);
        known[i] = square > LEAST, f->sigma[i] = known[i] ? length * scale : 0;
        for (int j = 0; known[i] && j < d; j++) f->Vt[i * ld + j] /= length;
    }
    for (int i = 0; i < d; i++)
        if (!known[i]) T(completed)(d, ld, f->Vt, known, i), known[i] = 1;
    for (int i = 0; i < d; i++)
        for (int j = 0; j < d; j++) f->V[j * ld + i] = f->Vt[i * ld + j];
    return 0;
}

/* log of x_0 x_1 ... and the sum of 1/x_k, for x_k = t + gap_k. NaN where products leave the range. */
static double T(logarithm)(double t, const double *gaps, long n, double *inverses) {
    double sums[8] = {0}, product[8], log_product = 0;
    for (long first = 0; first < n; first += 64) {
        const long end = first + 64 < n ? first + 64 : n;
        for (int i = 0; i < 8; i++) product[i] = 1;
        long k = first;
        for (; k + 8 <= end; k += 8)
            for (int i = 0; i < 8; i++) product[i] *= t + gaps[k + i], sums[i] += 1 / (t + gaps[k + i]);
        for (int i = 0; k < end; i++, k++) product[i] *= t + gaps[k], sums[i] += 1 / (t + gaps[k]);
        double mantissa = 1;
        int exponents = 0, exponent;
        for (int i = 0; i < 8; i++) {
            if (!(product[i] > LEAST && product[i] < 1 / LEAST)) return NAN;
            mantissa *= frexp(product[i], &exponent), exponents += exponent;
        }
        log_product += log(mantissa) + exponents * M_LN2;
    }
    *inverses = ((sums[0] + sums[4]) + (sums[2] + sums[6])) + ((sums[1] + sums[5]) + (sums[3] + sums[7]));
    return log_product;
}

/* Roots of all a beside the largest one x: with u = t_a/t and q = 1 - u factors are r = (x_a + c)/(x + c) = u s + 1 - s = 1 - q s
   for s = t/(x + c), by the second where q is small: then 1 - r keeps its digits. That is base + w, w = slope s + rest (1 - s). */
typedef struct {
    double u[LAYERED], base[LAYERED], slope[LAYERED], rest[LAYERED];
} T(Roots);

/* P becomes the product of it and some factors r, and N its derivative by u. */
INLINE void T(multiplied)(int ld, const T(Roots) *r, const double *s, const double *bar, long first, long end, double *P, double *N) {
    for (int h = 0; h < ld / 4; h++) {
        const four base = *(const four *)(r->base + 4 * h), slope = *(const four *)(r->slope + 4 * h);
        const four rest = *(const four *)(r->rest + 4 * h);
        four p = *(four *)(P + 4 * h), n = *(four *)(N + 4 * h);
        for (long k = first; k < end; k++) {
            const four w = slope * s[k] + rest * bar[k];
            n = base * n + (w * n + p * s[k]), p = base * p + w * p;
        }
        *(four *)(P + 4 * h) = p, *(four *)(N + 4 * h) = n;
    }
}

/* The divided differences of the product of all factors: that of the first k + 1 from that of the first k. */
INLINE void T(differences)(int ld, const T(Roots) *r, const double *s, const double *bar, long L, double *K) {
    four rows[LAYERED][LAYERED / 4], p[LAYERED / 4];
    double P[LAYERED];
    for (int h = 0; h < ld / 4; h++) {
        p[h] = (four){1, 1, 1, 1};
        for (int a = 0; a < ld; a++) rows[a][h] = (four){0};
    }
    for (long k = 0; k < L; k++) {
        for (int h = 0; h < ld / 4; h++) *(four *)(P + 4 * h) = p[h] * s[k];
        for (int h = 0; h < ld / 4; h++) {
            const four base = *(const four *)(r->base + 4 * h), slope = *(const four *)(r->slope + 4 * h);
            const four rest = *(const four *)(r->rest + 4 * h);
            const four w = slope * s[k] + rest * bar[k];
            UNROLL for (int a = 0; a < ld; a++) rows[a][h] = base * rows[a][h] + (w * rows[a][h] + P[a]);
            p[h] = base * p[h] + w * p[h];
        }
    }
    for (int a = 0; a < ld; a++)
        for (int h = 0; h < ld / 4; h++) *(four *)(K + a * ld + 4 * h) = rows[a][h];
}

/* K_ab of singular values. With x_k = t + gap_k for the largest root, shares are s_k = t/x_k and 1 - s_k, first those of the m least
   shifts. The root of another one is t e^D, where the product of all r is (sigma_a/sigma)^2. Returns 1 where products leave the
   range of numbers. */
INLINE int T(rooted)(int d, int ld, const Layers *layers, const double *shifts, const double *sigma, double *shares, double *K) {
    const long L = layers->L;
    double *s = shares, *bar = shares + L;
    double least = shifts[0], largest = DBL_MIN, mean = 0;
    for (long k = 1; k < L; k++) least = shifts[k] < least ? shifts[k] : least;
    for (int i = 0; i < d; i++) largest = sigma[i] > largest ? sigma[i] : largest;
    long m = 0;
    for (long k = 0, last = L; k < L; k++) {
        const double gap = shifts[k] - least;
        bar[gap == 0 ? m++ : --last] = gap, mean += gap / L;
    }
    /* Newton in y = log t, from the right, down a convex function that rises. */
    const double goal = 2 * log(largest);
    double y = goal / L, t, step = 1;
    mean *= exp(-y);
    if (mean < 0.5) y += log1p(-mean);
    for (int sweep = 0;; sweep++) {
        t = exp(y);
        if (fabs(step) <= SETTLED) break;
        double inverses;
        const double logs = T(logarithm)(t, bar + m, L - m, &inverses) + m * y;
        step = (logs - goal) / (m + t * inverses), y -= step;
        if (!isfinite(step) || sweep == 100) return 1;
    }
    double sum = 0;
    for (long k = 0; k < L; k++) {
        const double gap = bar[k], x = t + gap;
        s[k] = k < m ? 1 : t / x, bar[k] = k < m ? 0 : gap / x, sum += s[k];
    }
    /* The same in D of each, from 0 on. */
    T(Roots) r;
    double D[LAYERED], goals[LAYERED], P[LAYERED], N[LAYERED], sums[LAYERED * LAYERED];
    for (int i = 0; i < ld; i++) {
        const double own = i < d && sigma[i] > DBL_MIN ? sigma[i] : DBL_MIN, ratio = own / largest;
        goals[i] = i >= d ? 0 : ratio > LEAST ? 2 * log(ratio) : 2 * log(own) - goal;
        D[i] = i < d && sigma[i] == 0 ? -INFINITY : goals[i] / sum; /* of 0 the root is known: u = 0 */
    }
    for (int sweep = 0, near = 0;; sweep++) {
        for (int i = 0; i < ld; i++) {
            const int small = D[i] > -M_LN2;
            r.slope[i] = small ? expm1(D[i]) : exp(D[i]), r.base[i] = small, r.rest[i] = !small;
            r.u[i] = r.base[i] + r.slope[i];
        }
        if (near) break;
        int exponents[LAYERED] = {0};
        for (int i = 0; i < ld; i++) P[i] = 1, N[i] = 0;
        for (long first = m; first < L; first += 16) {
            T(multiplied)(ld, &r, s, bar, first, first + 16 < L ? first + 16 : L, P, N);
            for (int i = 0; i < ld; i++) {
                int exponent;
                if (P[i] > sqrt(LEAST)) continue;
                if (!(P[i] > LEAST)) return 1;
                P[i] = frexp(P[i], &exponent), N[i] = ldexp(N[i], -exponent), exponents[i] += exponent;
            }
        }
        near = 1;
        for (int i = 0; i < d; i++) {
            if (sigma[i] == 0) continue;
            const double slope = m + r.u[i] * N[i] / P[i];
            const double change = (m * D[i] + (log(P[i]) + exponents[i] * M_LN2) - goals[i]) / slope;
            D[i] = D[i] - change < 0 ? D[i] - change : 0;
            if (!(change * change <= DBL_EPSILON * (D[i] > -1 ? -D[i] : 1))) near = 0;
        }
        if (sweep == 100) return 1;
    }
    T(differences)(ld, &r, s, bar, L, sums);
    const double scale = layers->scale * exp(goal - y) / 2;
    for (int a = 0; a < d; a++)
        for (int b = 0; b < d; b++) K[a * ld + b] = scale * (sums[a * ld + b] + sums[b * ld + a]);
    return 0;
}

/* The factors of a state (d, d) and K in a room, and z, which it is. Returns 1 where they cannot be had. */
static int T(divided_forward)(int d, const Layers *layers, const double *shifts, const double *state, double *room, double *z) {
    const T(Factors) f = T(factors_in)(d, layers, room);
    memcpy(z, state, d * d * sizeof(double));
    if (T(singular)(&f, state)) return 1;
    return BY_ROWS(T(rooted), d, f.ld, layers, shifts, f.sigma, f.shares, f.K);
}

/* Minus the velocity there, from the gradient G (d, d) at z. */
static void T(divided_backward)(int d, const Layers *layers, const double *G, double *room, double *out) {
    const T(Factors) f = T(factors_in)(d, layers, room);
    const int ld = f.ld;
    memset(f.one, 0, (long)ld * ld * sizeof(double));
    T(spread_out)(d, ld, G, f.one);
    T(times)(d, ld, f.Ut, f.one, f.two);
    T(times)(d, ld, f.two, f.V, f.one);
    for (int a = 0; a < d; a++)
        for (int b = 0; b < d; b++) f.one[a * ld + b] *= f.K[a * ld + b];
    T(turned_times)(d, ld, f.Ut, f.one, f.two);
    T(times)(d, ld, f.two, f.Vt, f.one);
    for (int i = 0; i < d; i++) memcpy(out + i * d, f.one + i * ld, d * sizeof(double));
}

/* The velocity of a state, of a loss that is a square. Returns 1 where it cannot be had. */
static int T(divided)(const Squares *loss, int d, const Layers *layers, const double *shifts, const double *state,
                      double *room, double *out) {
    double *z = T(factors_in)(d, layers, room).rest, *G = z + d * d;
    if (T(divided_forward)(d, layers, shifts, state, room, z)) return 1;
    T(downhill)(loss, d, z, G + d * d, G);
    T(divided_backward)(d, layers, G, room, out);
    return !T(finite)((long)d * d, out);
}
