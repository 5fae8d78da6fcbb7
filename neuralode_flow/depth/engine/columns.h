/* Panels of matrices of at most 4 x 4. Rows of X' = X B do not know of each other: those of both halves lie side by side, and
   a column is eight numbers, of the 4 rows of u^T and of those of v. B has each of its numbers 4 times for u^T, and 4 for v. */

/* The node of W that stands at place k of a half. */
INLINE int T(node)(int m, int k) {
    const int odd = m & 1, p = (k + odd) / 2;
    return (k + odd) % 2 ? m - 1 - m / 2 - p : m / 2 + p;
}

typedef CAT(fulldouble, TARGET) T(rows);
enum { T(SLICE) = BYTES / sizeof(double) }; /* rows that are in one vector: no slice knows of another */

/* J f of some rows at the two nodes of a pair, as `integral` has it; F has the d columns of each even part, then of each odd one. */
INLINE void T(integrals)(int d, int pairs, const double *c, const double *F, T(rows) right[4], T(rows) left[4]) {
    T(rows) a[4] = {{0}}, b[4] = {{0}};
    for (int p = 0; p < pairs; p++, F += d * COLUMN)
        UNROLL for (int j = 0; j < d; j++) {
            a[j] += c[p] * *(const T(rows) *)(F + j * COLUMN);
            b[j] += c[pairs + p] * *(const T(rows) *)(F + (pairs * d + j) * COLUMN);
        }
    UNROLL for (int j = 0; j < d; j++) right[j] = b[j] + a[j], left[j] = b[j] - a[j];
}

/* f = (I + x) B */
INLINE void T(slopes)(int d, const double *I, const T(rows) x[4], const double *B, T(rows) f[4]) {
    UNROLL for (int j = 0; j < d; j++) f[j] = (T(rows)){0};
    UNROLL for (int l = 0; l < d; l++) {
        const T(rows) y = x[l] + *(const T(rows) *)(I + l * COLUMN);
        UNROLL for (int j = 0; j < d; j++) f[j] += y * *(const T(rows) *)(B + (l * d + j) * COLUMN);
    }
}

/* f of some rows at a pair of nodes, from J f there, into F. */
INLINE void T(paired)(int d, int pairs, const double *I, const T(rows) right[4], const T(rows) left[4], const double *B, double *F) {
    T(rows) f[4], g[4];
    T(slopes)(d, I, right, B, f);
    T(slopes)(d, I, left, B + d * d * COLUMN, g);
    UNROLL for (int j = 0; j < d; j++) {
        *(T(rows) *)(F + j * COLUMN) = f[j] + g[j];
        *(T(rows) *)(F + (pairs * d + j) * COLUMN) = f[j] - g[j];
    }
}

/* The sweeps of sweeps.h; 0 where they fail. */
INLINE int T(swept)(int d, const Work *w, const double *I, const double *B, double *F, double *room) {
    const int pairs = w->pairs, odd = w->odd, node = d * d * COLUMN, column = d * COLUMN;
    const double *c = w->c, *last = c + (pairs - 1) * 2 * pairs;
    const T(rows) none[4] = {{0}};
    T(rows) right[4], left[4];
    double *now = room, *old = room + 2 * column, before = 0;
    for (int q = 0; q < COLUMN; q += T(SLICE)) {
        if (odd) {
            T(slopes)(d, I + q, none, B + q, right);
            UNROLL for (int j = 0; j < d; j++) {
                *(T(rows) *)(F + j * COLUMN + q) = right[j];
                *(T(rows) *)(F + pairs * column + j * COLUMN + q) = none[j];
            }
        }
        for (int p = odd; p < pairs; p++)
            T(paired)(d, pairs, I + q, none, none, B + (2 * p - odd) * node + q, F + p * column + q);
    }
    if (pairs == odd) return 1;
#define AT_EACH_SLICE(c, to, ...)                                                                                      \
    for (int q = 0; q < COLUMN; q += T(SLICE)) {                                                                       \
        T(integrals)(d, pairs, c, F + q, right, left);                                                                 \
        __VA_ARGS__;                                                                                                   \
        UNROLL for (int j = 0; j < d; j++) {                                                                           \
            *(T(rows) *)(to + j * COLUMN + q) = right[j];                                                              \
            *(T(rows) *)(to + column + j * COLUMN + q) = left[j];                                                      \
        }                                                                                                              \
    }
    AT_EACH_SLICE(last, old)
    for (int sweep = 1; sweep <= MAX_SWEEPS; sweep++) {
        for (int p = odd; p < pairs; p++)
            AT_EACH_SLICE(c + p * 2 * pairs, now,
                          T(paired)(d, pairs, I + q, right, left, B + (2 * p - odd) * node + q, F + p * column + q))
        const double change = CAT(largestdouble, TARGET)(2 * column, now, old),
                     size = CAT(largestdouble, TARGET)(2 * column, now, 0);
        const int end = ended(sweep, change, before, size, TOLERANCE, LARGEST * LARGEST / 2, 4.4e-16);
        if (end) return end > 0;
        before = change;
        double *swap = now;
        now = old, old = swap;
    }
    return 0;
}

/* Both halves of a panel: u^T and v at each node, ordered from the middle, and at the right and the left end. */
INLINE void T(panel_of)(int d, Work *w, long t, double *room) {
    const int m = w->m, pairs = w->pairs, odd = w->odd;
    const long n = w->n;
    double *X = w->X + t * 2 * m * n, *ends = w->ends + t * 4 * n, *I = room, *B = I + 4 * COLUMN, *F = B + m * d * d * COLUMN,
           *now = F + 2 * pairs * d * COLUMN;
    memset(I, 0, 4 * COLUMN * sizeof(double));
    for (int j = 0; j < d; j++) I[j * COLUMN + j] = I[j * COLUMN + 4 + j] = 1;
    for (int k = 0; k < m; k++) {
        const double *from = w->W + (t * m + T(node)(m, k)) * d * d;
        four *to = (four *)(B + k * d * d * COLUMN);
        UNROLL for (int l = 0; l < d; l++) UNROLL for (int j = 0; j < d; j++, to += 2) {
            to[0] = (four){0} + from[j * d + l];
            to[1] = (four){0} - from[l * d + j];
        }
    }
    if (!T(swept)(d, w, I, B, F, now)) {
        __atomic_store_n(&w->failed, 1, __ATOMIC_RELAXED);
        return;
    }
    for (int p = 0; p <= pairs; p++) {
        for (int q = 0; q < COLUMN; q += T(SLICE)) {
            T(rows) right[4], left[4];
            T(integrals)(d, pairs, w->c + p * 2 * pairs, F + q, right, left);
            UNROLL for (int j = 0; j < d; j++) {
                const T(rows) one = *(const T(rows) *)(I + j * COLUMN + q);
                *(T(rows) *)(now + j * COLUMN + q) = right[j] + one;
                *(T(rows) *)(now + (d + j) * COLUMN + q) = left[j] + one;
            }
        }
        for (int side = odd && p == 0; side < 2; side++)
            for (int half = 0; half < 2; half++) {
                four r[4] = {{0}};
                UNROLL for (int j = 0; j < d; j++) r[j] = *(const four *)(now + (side * d + j) * COLUMN + 4 * half);
                T(turn)(r, (p < pairs ? X + half * m * n + (2 * p - odd + side) * n : ends + half * 2 * n + side * n), 4);
            }
    }
}
static void T(panel)(Work *w, long t, double *room) {
    switch (w->d) {
    case 1: T(panel_of)(1, w, t, room); break;
    case 2: T(panel_of)(2, w, t, room); break;
    case 3: T(panel_of)(3, w, t, room); break;
    default: T(panel_of)(4, w, t, room);
    }
}
