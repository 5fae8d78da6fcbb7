/* Chains of matrices of at most 8 x 8. LANES parts of a member, 4 or 8, one after the other in the chain, are worked on side by
   side: the k-th matrices of all of them are d^2 vectors, and the numbers (i, j) of them are the vector i d + j. */

typedef double V(lane) __attribute__((vector_size(8 * LANES), aligned(8), may_alias));
#define LANE V(lane)

INLINE long V(size)(const Work *w) { return (long)LANES * w->d * w->d; }

/* Some rows, from the i-th on, of C = a I + S + alpha (A B + D E), where d, the number of rows, and what there is of it are
   known; a I where i is known as well, up to d = 4. */
INLINE void V(rows_known)(int d, int kind, int rows, int i, double a, const LANE *S, double alpha, const LANE *A, const LANE *B,
                          const LANE *D, const LANE *E, LANE *C) {
#define ALL UNROLL for (int r = 0; r < rows; r++) UNROLL for (int j = 0; j < d; j++)
    LANE sum[4][BESIDE];
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

/* As many rows at a time as there are registers for, at least all but one of them. S may be C. */
#if LANES == 8
#define AT_ONCE(d) ((d) == 8 ? 2 : (d) > 5 ? 3 : (d) > 4 ? 4 : (d))
#else
#define AT_ONCE(d) ((d) > 6 ? 1 : 2)
#endif
#define KNOWN(d, kind)                                                                                                 \
    static void V(CAT(kind, d))(double a, const LANE *S, double alpha, const LANE *A, const LANE *B, const LANE *D,    \
                                const LANE *E, LANE *C) {                                                              \
        const int rows = AT_ONCE(d);                                                                                   \
        UNROLL for (int i = 0; i + rows <= d; i += rows)                                                               \
            V(rows_known)(d, kind, rows, i, a, S, alpha, A, B, D, E, C);                                               \
        if (d % rows) V(rows_known)(d, kind, 1, d - 1, a, S, alpha, A, B, D, E, C);                                    \
    }
#define KINDS(d) KNOWN(d, ONE) KNOWN(d, SUM) KNOWN(d, SCALED) KNOWN(d, TWO)
KINDS(1) KINDS(2) KINDS(3) KINDS(4) KINDS(5) KINDS(6) KINDS(7) KINDS(8)
#undef KINDS
#undef KNOWN
#undef AT_ONCE
typedef void V(Known)(double, const LANE *, double, const LANE *, const LANE *, const LANE *, const LANE *, LANE *);
#define KINDS(d) {V(ONE##d), V(SUM##d), V(SCALED##d), V(TWO##d)}
static V(Known) *const V(known)[BESIDE][4] = {KINDS(1), KINDS(2), KINDS(3), KINDS(4),
                                              KINDS(5), KINDS(6), KINDS(7), KINDS(8)};
#undef KINDS

/* C = S + A B, without S where that is 0 */
INLINE void V(times)(const Work *w, const double *A, const double *B, const double *S, double *C) {
    V(known)[w->d - 1][S ? SUM : ONE](0, (const LANE *)S, 1, (const LANE *)A, (const LANE *)B, 0, 0, (LANE *)C);
}

/* C = a I + S + alpha A B */
INLINE void V(series)(const Work *w, double a, const double *S, double alpha, const double *A, const double *B, double *C) {
    V(known)[w->d - 1][SCALED](a, (const LANE *)S, alpha, (const LANE *)A, (const LANE *)B, 0, 0, (LANE *)C);
    for (int i = 0; w->d > 4 && i < w->d; i++) ((LANE *)C)[i * (w->d + 1)] += a;
}

/* C = S + alpha (A B + D E) */
INLINE void V(both)(const Work *w, const double *S, double alpha, const double *A, const double *B, const double *D,
                          const double *E, double *C) {
    V(known)[w->d - 1][TWO](0, (const LANE *)S, alpha, (const LANE *)A, (const LANE *)B, (const LANE *)D, (const LANE *)E,
                            (LANE *)C);
}

/* y = a I + b x */
INLINE void V(affine)(const Work *w, double a, double b, const double *x, double *y) {
    const int d = w->d;
    for (int q = 0; q < d * d; q++) ((LANE *)y)[q] = b * ((const LANE *)x)[q];
    for (int i = 0; a != 0 && i < d; i++) ((LANE *)y)[i * (d + 1)] += a;
}

/* The squares of their Frobenius norms. */
static void V(squared)(const Work *w, const double *x, double *squares) {
    LANE sum = {0};
    for (int q = 0; q < w->d * w->d; q++) sum += ((const LANE *)x)[q] * ((const LANE *)x)[q];
    *(LANE *)squares = sum;
}

/* The largest of their Frobenius norms, infinite where there is none. */
static double V(norm)(const Work *w, const double *x) {
    double squared[LANES], most = 0;
    V(squared)(w, x, squared);
    for (int q = 0; q < LANES; q++)
        if (!(squared[q] <= most)) most = squared[q] < HUGE_VAL ? squared[q] : HUGE_VAL;
    return sqrt(most);
}

/* x^-1 in place by Gauss and Jordan, without pivots. */
INLINE void V(inverted)(int d, LANE *x) {
    UNROLL for (int k = 0; k < d; k++) {
        const LANE inverse = 1.0 / x[k * d + k];
        UNROLL for (int j = 0; j < d; j++) x[k * d + j] *= inverse;
        x[k * d + k] = inverse;
        UNROLL for (int i = 0; i < d; i++) {
            const LANE factor = x[i * d + k];
            if (i == k) continue;
            x[i * d + k] = (LANE){0};
            UNROLL for (int j = 0; j < d; j++) x[i * d + j] -= factor * x[k * d + j];
        }
    }
}

/* (I - B/2)^-1; of a norm above 1 with pivots, each by itself. Below that all pivots are above 1/2. */
static int V(resolvent)(const Work *w, const double *B, double *U) {
    const int d = w->d;
    LANE *x = (LANE *)U;
    double squared[LANES];
    V(squared)(w, B, squared);
    V(affine)(w, 1, -0.5, B, U);
    switch (d) {
    case 2: V(inverted)(2, x); break;
    case 3: V(inverted)(3, x); break;
    case 4: V(inverted)(4, x); break;
    default: V(inverted)(d, x);
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

#include "rules.h"

/* The first layer of parts side by side, and the end of their member: the k-th of part q is first + q length + k, if that lies
   before the end. The first part has `count` of them, and no other one has more. */
typedef struct {
    long first, end, count;
} V(Range);
INLINE V(Range) V(range)(const Work *w, long group) {
    const long groups = w->parts / LANES, member = groups == 1 ? group : group / groups;
    const long end = (member + 1) * w->L, first = end - w->L + (group - member * groups) * LANES * w->length;
    return (V(Range)){first, end, end - first < w->length ? end - first : w->length};
}

/* X = alpha W of the k-th layers of parts side by side. Where one has no more, it is what makes the identity. */
INLINE void V(side_by_side)(const Work *w, int d, V(Range) of, long k, double alpha, double *X) {
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
    UNROLL for (; e + 4 <= all; e += 4)
        UNROLL for (int p = 0; p < LANES; p += 4) {
            four r[4];
            UNROLL for (int q = 0; q < 4; q++) r[q] = alpha * *(const four *)(from[p + q] + e);
            T(turn)(r, X + LANES * e + p, LANES);
        }
    for (; e < all; e++)
        for (int q = 0; q < LANES; q++) X[LANES * e + q] = alpha * from[q][e];
}
static void V(beside)(const Work *w, V(Range) of, long k, double alpha, double *X) {
    if (w->d == 4)
        V(side_by_side)(w, 4, of, k, alpha, X);
    else
        V(side_by_side)(w, w->d, of, k, alpha, X);
}

/* Matrices side by side, or their transposes, each where it belongs, in rows of ld numbers; where that is 0 there is none. */
INLINE void V(taken_apart)(int d, int ld, int transposed, const double *X, double *const to[LANES]) {
    for (int i = 0; i < d; i++)
        UNROLL for (int j = 0; j < d; j += 4) UNROLL for (int p = 0; p < LANES; p += 4) {
            const int some = d - j < 4 ? d - j : 4;
            four r[4] = {{0}}, row[4];
            UNROLL for (int c = 0; c < some; c++)
                r[c] = *(const four *)(X + LANES * (transposed ? (j + c) * d + i : i * d + j + c) + p);
            T(turn)(r, (double *)row, 4);
            UNROLL for (int q = 0; q < 4; q++) {
                double *own = to[p + q];
                if (own && some == 4)
                    *(four *)(own + i * ld + j) = row[q];
                else if (own)
                    for (int c = 0; c < some; c++) own[i * ld + j + c] = row[q][c];
            }
        }
}
INLINE void V(apart)(int d, int ld, int transposed, const double *X, double *const to[LANES]) {
    if (d == 4)
        V(taken_apart)(4, 4, transposed, X, to);
    else
        V(taken_apart)(d, ld, transposed, X, to);
}

/* The layers of parts side by side: `units` gets them, without the I of Euler's, and `kept` the products up to each; of units
   only the last, of products the last two, unless all are asked for. Returns the whole products, or 0 where a layer
   cannot be made. room: 8 matrices. */
static const double *V(scan)(Work *w, V(Range) of, int all, double *kept, double *units, double *room) {
    const long n = V(size)(w);
    const double *now = 0;
    for (long k = 0; k < of.count; k++) {
        double *unit = units + (all ? k : 0) * n, *next = kept + (all ? k : k % 2) * n;
        V(beside)(w, of, k, w->rule == PLAIN ? 1 : w->alpha, w->turned ? room : unit);
        if (w->turned && !V(rule)(w, room, unit, room + n)) {
            __atomic_store_n(&w->failed, 1, __ATOMIC_RELAXED);
            return 0;
        }
        if (k == 0)
            V(affine)(w, w->rule == EULER, 1, unit, next);
        else
            V(times)(w, unit, now, w->rule == EULER ? now : 0, next);
        now = next;
    }
    return now;
}

static void V(products)(Work *w, long group, double *room) {
    const long t = LANES * group, n = V(size)(w), at = group * w->length * n;
    double *to[LANES];
    for (int q = 0; q < LANES; q++) to[q] = w->products + (t + q) * w->n;
    const V(Range) of = V(range)(w, group);
    const double *whole = w->kept ? V(scan)(w, of, 1, w->kept + at, w->units + at, room)
                                  : V(scan)(w, of, 0, room, room + 2 * n, room + 3 * n);
    if (whole) V(apart)(w->d, w->ld, 0, whole, to);
}

/* The gradients, from the last layer to the first; G and all that is made of it are transposed here. */
static void V(layers)(Work *w, long group, double *room) {
    const int d = w->d;
    const long t = LANES * group, n = V(size)(w), at = group * w->length * n;
    const V(Range) of = V(range)(w, group);
    double *G = room, *next = room + n, *M = room + 2 * n, *B = room + 3 * n, *D = room + 4 * n, *kept, *units;
    if (w->kept)
        kept = w->kept + at, units = w->units + at;
    else {
        kept = room + w->rooms * w->n, units = kept + w->length * n;
        if (!V(scan)(w, of, 1, kept, units, room)) return;
    }
    for (int i = 0; i < d; i++)
        for (int j = 0; j < d; j += 4)
            for (int p = 0; p < LANES; p += 4) {
                four r[4], row[4];
                UNROLL for (int q = 0; q < 4; q++) r[q] = *(const four *)(w->products + (t + p + q) * w->n + i * w->ld + j);
                T(turn)(r, (double *)row, 4);
                for (int c = 0; c < 4 && j + c < d; c++) *(four *)(G + LANES * ((j + c) * d + i) + p) = row[c];
            }
    for (long k = of.count - 1; k >= 0; k--) {
        const double *unit = units + k * n, *out = G;
        double *to[LANES];
        if (k > 0) V(times)(w, kept + (k - 1) * n, G, 0, M), out = M;
        if (w->turned) {
            if (w->rule != CAYLEY) V(beside)(w, of, k, w->alpha, B);
            V(derivative)(w, B, unit, out, D, room + 5 * n);
            out = D;
        }
        for (int q = 0; q < LANES; q++) {
            const long layer = of.first + q * w->length + k;
            to[q] = layer < of.end ? w->out + layer * d * d : 0;
        }
        V(apart)(d, d, 1, out, to);
        for (int q = 0; w->moves && q < LANES; q++)
            if (to[q]) T(move)(w, (to[q] - w->out) / (d * d), room);
        if (k == 0) return;
        V(times)(w, G, unit, w->rule == EULER ? G : 0, next);
        double *swap = G;
        G = next, next = swap;
    }
}
#undef LANE
