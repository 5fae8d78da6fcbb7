/* Panels of matrices of at most 4 x 4. Rows of X' = X B do not know of each other: those of both halves lie side by
   side, and a column is eight numbers, those of the 4 rows of u^T and of the 4 of v. A number of B is there 8 times,
   four for each half, so that no product waits for a factor to be spread. */

typedef CAT(fulldouble, TARGET) T(rows);
typedef double T(same) __attribute__((vector_size(BYTES < 32 ? BYTES : 32), aligned(sizeof(double)), may_alias));
enum { T(SLICE) = BYTES / sizeof(double) }; /* rows in one vector */

INLINE void T(store)(int d, const T(rows) x[4], double *to) {
    UNROLL for (int j = 0; j < d; j++) *(T(rows) *)(to + j * COLUMN) = x[j];
}

/* `integral` for some rows at one pair of nodes; F has the columns of each even part, then of each odd one. */
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
INLINE void T(slopes)(int d, const T(rows) I[4], const T(rows) x[4], const double *B, T(rows) f[4]) {
    UNROLL for (int j = 0; j < d; j++) f[j] = (T(rows)){0};
    UNROLL for (int l = 0; l < d; l++) {
        const T(rows) y = x[l] + I[l];
        UNROLL for (int j = 0; j < d; j++) f[j] += y * *(const T(rows) *)(B + (l * d + j) * COLUMN);
    }
}

/* Puts f at a pair of nodes into F, from J f there. */
INLINE void T(paired)(int d, int pairs, const T(rows) I[4], const T(rows) right[4], const T(rows) left[4],
                      const double *B, double *F) {
    T(rows) f[4], g[4], even[4], odd[4];
    T(slopes)(d, I, right, B, f);
    T(slopes)(d, I, left, B + d * d * COLUMN, g);
    UNROLL for (int j = 0; j < d; j++) even[j] = f[j] + g[j], odd[j] = f[j] - g[j];
    T(store)(d, even, F);
    T(store)(d, odd, F + pairs * d * COLUMN);
}

/* The sweeps of sweeps.h for both halves; 0 where they fail. room: 4 d columns. */
INLINE int T(swept)(int d, const Work *w, const double *B, double *F, double *room) {
    const int pairs = w->pairs, odd = w->odd, size_B = d * d * COLUMN, size_f = d * COLUMN;
    const double *c = w->c, *last = c + (pairs - 1) * 2 * pairs;
    const T(rows) none[4] = {{0}};
    T(rows) I[COLUMN][4] = {{{0}}}, right[4], left[4];
    double *now = room, *old = room + 2 * size_f, before = 0;
    UNROLL for (int q = 0; q < COLUMN; q++) UNROLL for (int r = 0; r < T(SLICE); r++) I[q][(q + r) % 4][r] = 1;
    for (int q = 0; q < COLUMN; q += T(SLICE)) {
        if (odd) {
            T(slopes)(d, I[q], none, B + q, right);
            T(store)(d, right, F + q);
            T(store)(d, none, F + pairs * size_f + q);
        }
        for (int p = odd; p < pairs; p++)
            T(paired)(d, pairs, I[q], none, none, B + (2 * p - odd) * size_B + q, F + p * size_f + q);
        T(integrals)(d, pairs, last, F + q, right, left);
        T(store)(d, right, old + q);
        T(store)(d, left, old + size_f + q);
    }
    if (pairs == odd) return 1;
    for (int sweep = 1; sweep <= MAX_SWEEPS; sweep++) {
        for (int p = odd; p < pairs; p++)
            UNROLL for (int q = 0; q < COLUMN; q += T(SLICE)) {
                T(integrals)(d, pairs, c + p * 2 * pairs, F + q, right, left);
                T(paired)(d, pairs, I[q], right, left, B + (2 * p - odd) * size_B + q, F + p * size_f + q);
                T(store)(d, right, now + q);
                T(store)(d, left, now + size_f + q);
            }
        const double change = CAT(largestdouble, TARGET)(2 * size_f, now, old),
                     size = CAT(largestdouble, TARGET)(2 * size_f, now, 0);
        const int end = ended(sweep, change, before, size, TOLERANCE, LARGEST * LARGEST / 2, 4.4e-16);
        if (end) return end > 0;
        before = change;
        double *swap = now;
        now = old, old = swap;
    }
    return 0;
}

/* Both halves of a panel, as T(half) leaves them. */
INLINE void T(columns)(int d, Work *w, long t, double *room) {
    const int m = w->m, pairs = w->pairs, odd = w->odd, size_f = d * COLUMN;
    const long n = w->n;
    double *X = w->X + t * 2 * m * n, *ends = w->ends + t * 4 * n, *B = room, *F = B + m * d * size_f,
           *at = F + 2 * pairs * size_f;
    for (int k = 0; k < m; k++) {
        const double *from = w->W + (t * m + node(m, k)) * d * d;
        double *to = B + k * d * size_f;
        UNROLL for (int l = 0; l < d; l++) UNROLL for (int j = 0; j < d; j++, to += COLUMN) {
            const double of_u = from[j * d + l], of_v = -from[l * d + j];
            UNROLL for (int i = 0; i < 4; i += sizeof(T(same)) / sizeof(double)) {
                *(T(same) *)(to + i) = of_u - (T(same)){0};
                *(T(same) *)(to + 4 + i) = of_v - (T(same)){0};
            }
        }
    }
    if (!T(swept)(d, w, B, F, at)) {
        __atomic_store_n(&w->failed, 1, __ATOMIC_RELAXED);
        return;
    }
    for (int p = 0; p <= pairs; p++) {
        for (int q = 0; q < COLUMN; q += T(SLICE)) {
            T(rows) right[4], left[4];
            T(integrals)(d, pairs, w->c + p * 2 * pairs, F + q, right, left);
            T(store)(d, right, at + q);
            T(store)(d, left, at + size_f + q);
        }
        for (int side = odd && p == 0; side < 2; side++)
            for (int half = 0; half < 2; half++) {
                double *to = p < pairs ? X + (half * m + 2 * p - odd + side) * n : ends + (2 * half + side) * n;
                four r[4] = {{0}};
                UNROLL for (int j = 0; j < d; j++) {
                    r[j] = *(const four *)(at + side * size_f + j * COLUMN + 4 * half);
                    r[j][j] += 1;
                }
                T(turn)(r, to, 4);
            }
    }
}
static void T(panel)(Work *w, long t, double *room) {
    switch (w->d) {
    case 1: T(columns)(1, w, t, room); break;
    case 2: T(columns)(2, w, t, room); break;
    case 3: T(columns)(3, w, t, room); break;
    default: T(columns)(4, w, t, room);
    }
}
