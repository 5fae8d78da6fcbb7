/* Chains of matrices of at most 8 x 8. Four parts of a member, one after the other in the chain, are worked on side by side:
   the k-th matrices of all four are d^2 vectors, and the numbers (i, j) of them are the vector i d + j. */

INLINE long T(size_lanes)(const Work *w) { return (long)LANES * w->d * w->d; }

/* Some rows, from the i-th on, of C = a I + S + alpha (A B + D E), where d, the number of rows, and what there is of it are
   known; a I where i is known as well, up to d = 4. */
INLINE void T(rows_known)(int d, int kind, int rows, int i, double a, const four *S, double alpha, const four *A, const four *B,
                          const four *D, const four *E, four *C) {
#define ALL UNROLL for (int r = 0; r < rows; r++) UNROLL for (int j = 0; j < d; j++)
    four sum[2][BESIDE];
    A += i * d, C += i * d;
    ALL {
        if (kind == SUM)
            sum[r][j] = S[(i + r) * d + j];
        else
            sum[r][j] = A[r * d] * B[j];
    }
    UNROLL for (int k = kind != SUM; k < d; k++) ALL sum[r][j] += A[r * d + k] * B[k * d + j];
    UNROLL for (int k = 0; kind == TWO && k < d; k++) ALL sum[r][j] += D[(i + r) * d + k] * E[k * d + j];
    ALL {
        if (kind == SCALED || kind == TWO) sum[r][j] = S[(i + r) * d + j] + alpha * sum[r][j];
        if (kind == SCALED && d <= 4 && i + r == j) sum[r][j] += a;
        C[r * d + j] = sum[r][j];
    }
#undef ALL
}

/* As many rows at a time as there are registers for. S may be C. */
#define KNOWN(d, kind)                                                                                                 \
    static void T(CAT(kind, d))(double a, const four *S, double alpha, const four *A, const four *B, const four *D,    \
                                const four *E, four *C) {                                                              \
        const int rows = d > 6 ? 1 : 2;                                                                                \
        _Pragma("GCC unroll 2") for (int i = 0; i + rows <= d; i += rows)                                              \
            T(rows_known)(d, kind, rows, i, a, S, alpha, A, B, D, E, C);                                               \
        if (d % rows) T(rows_known)(d, kind, 1, d - 1, a, S, alpha, A, B, D, E, C);                                    \
    }
#define KINDS(d) KNOWN(d, ONE) KNOWN(d, SUM) KNOWN(d, SCALED) KNOWN(d, TWO)
KINDS(1) KINDS(2) KINDS(3) KINDS(4) KINDS(5) KINDS(6) KINDS(7) KINDS(8)
#undef KINDS
#undef KNOWN
typedef void T(Known)(double, const four *, double, const four *, const four *, const four *, const four *, four *);
#define KINDS(d) {T(ONE##d), T(SUM##d), T(SCALED##d), T(TWO##d)}
static T(Known) *const T(known)[BESIDE][4] = {KINDS(1), KINDS(2), KINDS(3), KINDS(4),
                                              KINDS(5), KINDS(6), KINDS(7), KINDS(8)};
#undef KINDS

/* C = S + A B, without S where that is 0 */
INLINE void T(times_lanes)(const Work *w, const double *A, const double *B, const double *S, double *C) {
    T(known)[w->d - 1][S ? SUM : ONE](0, (const four *)S, 1, (const four *)A, (const four *)B, 0, 0, (four *)C);
}

/* C = a I + S + alpha A B */
INLINE void T(series_lanes)(const Work *w, double a, const double *S, double alpha, const double *A, const double *B, double *C) {
    T(known)[w->d - 1][SCALED](a, (const four *)S, alpha, (const four *)A, (const four *)B, 0, 0, (four *)C);
    for (int i = 0; w->d > 4 && i < w->d; i++) ((four *)C)[i * (w->d + 1)] += a;
}

/* C = S + alpha (A B + D E) */
INLINE void T(both_lanes)(const Work *w, const double *S, double alpha, const double *A, const double *B, const double *D,
                          const double *E, double *C) {
    T(known)[w->d - 1][TWO](0, (const four *)S, alpha, (const four *)A, (const four *)B, (const four *)D, (const four *)E,
                            (four *)C);
}

/* y = a I + b x */
INLINE void T(affine_lanes)(const Work *w, double a, double b, const double *x, double *y) {
    const int d = w->d;
    for (int q = 0; q < d * d; q++) ((four *)y)[q] = b * ((const four *)x)[q];
    for (int i = 0; a != 0 && i < d; i++) ((four *)y)[i * (d + 1)] += a;
}

/* The squares of the Frobenius norms of the four. */
static void T(squared)(const Work *w, const double *x, double *squares) {
    four sum = {0};
    for (int q = 0; q < w->d * w->d; q++) sum += ((const four *)x)[q] * ((const four *)x)[q];
    *(four *)squares = sum;
}

/* The largest Frobenius norm of the four, infinite where there is none. */
static double T(norm_lanes)(const Work *w, const double *x) {
    double squared[LANES], most = 0;
    T(squared)(w, x, squared);
    for (int q = 0; q < LANES; q++)
        if (!(squared[q] <= most)) most = squared[q] < HUGE_VAL ? squared[q] : HUGE_VAL;
    return sqrt(most);
}

/* (I - B/2)^-1 by Gauss and Jordan; of a norm above 1 with pivots, each by itself. Below that all pivots are above 1/2. */
static int T(resolvent_lanes)(const Work *w, const double *B, double *U) {
    const int d = w->d;
    four *x = (four *)U;
    double squared[LANES];
    T(squared)(w, B, squared);
    T(affine_lanes)(w, 1, -0.5, B, U);
    for (int k = 0; k < d; k++) {
        const four inverse = 1.0 / x[k * d + k];
        for (int j = 0; j < d; j++) x[k * d + j] *= inverse;
        x[k * d + k] = inverse;
        for (int i = 0; i < d; i++) {
            const four factor = x[i * d + k];
            if (i == k) continue;
            x[i * d + k] = (four){0};
            for (int j = 0; j < d; j++) x[i * d + j] -= factor * x[k * d + j];
        }
    }
    for (int q = 0; q < LANES; q++) {
        double one[BESIDE * BESIDE] = {0};
        const int ld = w->ld;
        if (squared[q] <= 1) continue;
        for (int i = 0; i < d; i++)
            for (int j = 0; j < d; j++) one[i * ld + j] = (i == j) - B[LANES * (i * d + j) + q] / 2;
        if (!T(invert)(ld, d, 1, one)) return 0;
        for (int i = 0; i < d; i++)
            for (int j = 0; j < d; j++) U[LANES * (i * d + j) + q] = one[i * ld + j];
    }
    return 1;
}

#define LAYOUT _lanes
#include "rules.h"
#undef LAYOUT

/* The first layer of four parts, and the end of their member: the k-th of part q is first + q length + k, if that lies
   before the end. The first part has `count` of them, and no other one has more. */
typedef struct {
    long first, end, count;
} T(Range);
INLINE T(Range) T(range)(const Work *w, long group) {
    const long groups = w->parts / LANES, member = groups == 1 ? group : group / groups;
    const long end = (member + 1) * w->L, first = end - w->L + (group - member * groups) * LANES * w->length;
    return (T(Range)){first, end, end - first < w->length ? end - first : w->length};
}

/* X = alpha W of the k-th layers of four parts. Where one has no more, it is what makes the identity. */
INLINE void T(side_by_side)(const Work *w, int d, T(Range) of, long k, double alpha, double *X) {
    const int all = d * d;
    const long last = of.first + (LANES - 1) * w->length + k;
    const double *from[LANES];
    double none[BESIDE * BESIDE];
    if (last >= of.end) {
        memset(none, 0, all * sizeof(double));
        for (int i = 0; w->rule == PLAIN && i < d; i++) none[i * (d + 1)] = 1;
    }
    for (int q = 0; q < LANES; q++) {
        const long layer = last - (LANES - 1 - q) * w->length;
        from[q] = layer < of.end ? w->W + layer * all : none;
    }
    int e = 0;
    UNROLL for (; e + LANES <= all; e += LANES) {
        four r[LANES];
        UNROLL for (int q = 0; q < LANES; q++) r[q] = alpha * *(const four *)(from[q] + e);
        T(turn)(r, X + LANES * e, LANES);
    }
    for (; e < all; e++)
        for (int q = 0; q < LANES; q++) X[LANES * e + q] = alpha * from[q][e];
}
static void T(beside)(const Work *w, T(Range) of, long k, double alpha, double *X) {
    if (w->d == 4)
        T(side_by_side)(w, 4, of, k, alpha, X);
    else
        T(side_by_side)(w, w->d, of, k, alpha, X);
}

/* Four matrices, or their transposes, each where it belongs, in rows of ld numbers; where that is 0 there is none. */
INLINE void T(taken_apart)(int d, int ld, int transposed, const double *X, double *const to[LANES]) {
    for (int i = 0; i < d; i++)
        UNROLL for (int j = 0; j < d; j += 4) {
            const int some = d - j < 4 ? d - j : 4;
            four r[4] = {{0}}, row[LANES];
            UNROLL for (int c = 0; c < some; c++) r[c] = ((const four *)X)[transposed ? (j + c) * d + i : i * d + j + c];
            T(turn)(r, (double *)row, 4);
            UNROLL for (int q = 0; q < LANES; q++) {
                if (to[q] && some == 4)
                    *(four *)(to[q] + i * ld + j) = row[q];
                else if (to[q])
                    for (int c = 0; c < some; c++) to[q][i * ld + j + c] = row[q][c];
            }
        }
}
INLINE void T(apart)(int d, int ld, int transposed, const double *X, double *const to[LANES]) {
    if (d == 4)
        T(taken_apart)(4, 4, transposed, X, to);
    else
        T(taken_apart)(d, ld, transposed, X, to);
}

/* The layers of four parts: `units` gets them, without the I of Euler's, and `kept` the products up to each; of units
   only the last, of products the last two, unless all are asked for. Returns the whole products, or 0 where a layer
   cannot be made. room: 8 matrices. */
static const double *T(scan_lanes)(Work *w, T(Range) of, int all, double *kept, double *units, double *room) {
    const long n = T(size_lanes)(w);
    const double *now = 0;
    for (long k = 0; k < of.count; k++) {
        double *unit = units + (all ? k : 0) * n, *next = kept + (all ? k : k % 2) * n;
        T(beside)(w, of, k, w->rule == PLAIN ? 1 : w->alpha, w->turned ? room : unit);
        if (w->turned && !T(rule_lanes)(w, room, unit, room + n)) {
            __atomic_store_n(&w->failed, 1, __ATOMIC_RELAXED);
            return 0;
        }
        if (k == 0)
            T(affine_lanes)(w, w->rule == EULER, 1, unit, next);
        else
            T(times_lanes)(w, unit, now, w->rule == EULER ? now : 0, next);
        now = next;
    }
    return now;
}

static void T(products_lanes)(Work *w, long group, double *room) {
    const long t = LANES * group, n = T(size_lanes)(w), at = group * w->length * n;
    double *to[LANES];
    for (int q = 0; q < LANES; q++) to[q] = w->products + (t + q) * w->n;
    const T(Range) of = T(range)(w, group);
    const double *whole = w->kept ? T(scan_lanes)(w, of, 1, w->kept + at, w->units + at, room)
                                  : T(scan_lanes)(w, of, 0, room, room + 2 * n, room + 3 * n);
    if (whole) T(apart)(w->d, w->ld, 0, whole, to);
}

/* The gradients, from the last layer to the first; G and all that is made of it are transposed here. */
static void T(layers_lanes)(Work *w, long group, double *room) {
    const int d = w->d;
    const long t = LANES * group, n = T(size_lanes)(w), at = group * w->length * n;
    const T(Range) of = T(range)(w, group);
    double *G = room, *next = room + n, *M = room + 2 * n, *B = room + 3 * n, *D = room + 4 * n, *kept, *units;
    if (w->kept)
        kept = w->kept + at, units = w->units + at;
    else {
        kept = room + w->rooms * w->n, units = kept + w->length * n;
        if (!T(scan_lanes)(w, of, 1, kept, units, room)) return;
    }
    for (int i = 0; i < d; i++)
        for (int j = 0; j < d; j += 4) {
            four r[LANES], row[4];
            UNROLL for (int q = 0; q < LANES; q++) r[q] = *(const four *)(w->products + (t + q) * w->n + i * w->ld + j);
            T(turn)(r, (double *)row, 4);
            for (int c = 0; c < 4 && j + c < d; c++) ((four *)G)[(j + c) * d + i] = row[c];
        }
    for (long k = of.count - 1; k >= 0; k--) {
        const double *unit = units + k * n, *out = G;
        double *to[LANES];
        if (k > 0) T(times_lanes)(w, kept + (k - 1) * n, G, 0, M), out = M;
        if (w->turned) {
            if (w->rule != CAYLEY) T(beside)(w, of, k, w->alpha, B);
            T(derivative_lanes)(w, B, unit, out, D, room + 5 * n);
            out = D;
        }
        for (int q = 0; q < LANES; q++) {
            const long layer = of.first + q * w->length + k;
            to[q] = layer < of.end ? w->out + layer * d * d : 0;
        }
        T(apart)(d, d, 1, out, to);
        for (int q = 0; w->moves && q < LANES; q++)
            if (to[q]) T(move)(w, (to[q] - w->out) / (d * d), room);
        if (k == 0) return;
        T(times_lanes)(w, G, unit, w->rule == EULER ? G : 0, next);
        double *swap = G;
        G = next, next = swap;
    }
}
