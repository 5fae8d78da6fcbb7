/* A chain of layers: the layer rules and their adjoints, products forward, gradients backward. */

/* x^-1 in place by Gauss and Jordan, with row pivots where they are asked for; 0 where there is none. */
static int T(invert)(int ld, int d, int pivoting, double *x) {
    double row[LARGEST_D], factor[LARGEST_D];
    int pivots[LARGEST_D];
    for (int k = 0; k < d; k++) {
        int p = k;
        for (int i = k + 1; pivoting && i < d; i++)
            if (fabs(x[i * ld + k]) > fabs(x[p * ld + k])) p = i;
        pivots[k] = p;
        memcpy(row, x + p * ld, ld * sizeof(double));
        if (p != k) memcpy(x + p * ld, x + k * ld, ld * sizeof(double));
        const double pivot = row[k], inverse = 1 / pivot;
        if (!(fabs(inverse) > 0 && fabs(inverse) < HUGE_VAL)) return 0;
        row[k] = pivot + 1; /* so that its column becomes -factor */
        for (int i = 0; i < d; i++) factor[i] = x[i * ld + k] * inverse;
        for (int i = 0; i < d; i++)
            UNROLL for (int j = 0; j < ld; j += 4) *(four *)(x + i * ld + j) -= factor[i] * *(const four *)(row + j);
        for (int j = 0; j < ld; j += 4) *(four *)(x + k * ld + j) = inverse * *(const four *)(row + j);
        x[k * ld + k] = inverse;
    }
    for (int k = d - 1; k >= 0; k--)
        for (int i = 0; pivots[k] != k && i < d; i++) {
            double *one = x + i * ld + k, *other = x + i * ld + pivots[k];
            const double swap = *one;
            *one = *other, *other = swap;
        }
    return 1;
}

INLINE long T(size_rows)(const Work *w) { return w->n; }

/* C = S + A B */
INLINE void T(times_rows)(const Work *w, const double *A, const double *B, const double *S, double *C) {
    PRODUCT(w->ld, w->d, A, w->ld, 1, B, 1, S, C);
}

/* y = a I + b x */
INLINE void T(affine_rows)(const Work *w, double a, double b, const double *x, double *y) {
    for (long q = 0; q < w->ld * w->ld; q++) y[q] = b * x[q];
    for (int i = 0; i < w->d; i++) y[i * w->ld + i] += a;
}

/* C = a I + S + alpha A B */
INLINE void T(series_rows)(const Work *w, double a, const double *S, double alpha, const double *A, const double *B, double *C) {
    PRODUCT(w->ld, w->d, A, w->ld, 1, B, alpha, S, C);
    for (int i = 0; i < w->d; i++) C[i * w->ld + i] += a;
}

/* C = S + alpha (A B + D E) */
INLINE void T(both_rows)(const Work *w, const double *S, double alpha, const double *A, const double *B, const double *D,
                         const double *E, double *C) {
    PRODUCT(w->ld, w->d, A, w->ld, 1, B, alpha, S, C);
    PRODUCT(w->ld, w->d, D, w->ld, 1, E, alpha, C, C);
}

/* The Frobenius norm. */
static double T(norm_rows)(const Work *w, const double *x) {
    double sum = 0;
    for (int i = 0; i < w->d; i++)
        for (int j = 0; j < w->d; j++) sum += x[i * w->ld + j] * x[i * w->ld + j];
    return sqrt(sum);
}

/* (I - B/2)^-1 */
static int T(resolvent_rows)(const Work *w, const double *B, double *U) {
    T(affine_rows)(w, 1, -0.5, B, U);
    return T(invert)(w->ld, w->d, T(norm_rows)(w, B) > 1, U); /* below that all pivots are above 1/2 */
}

#define LAYOUT _rows
#include "rules.h"
#undef LAYOUT

/* The transpose of the layer rule(alpha W) for W = the k-th given matrix; 0 where there is none. room: 9 n. */
static int T(unit)(const Work *w, long k, double *U, double *room) {
    int stride;
    const double *W = T(given)(w, k, room, &stride);
    T(transpose)(w->ld, stride, w->alpha, W, room + w->n);
    return T(rule_rows)(w, room + w->n, U, room + 2 * w->n);
}

/* D = the gradient with respect to alpha W, from that with respect to the layer, M; U as `unit` gave it. room: 10 n. */
static void T(adjoint)(const Work *w, long k, const double *U, const double *M, double *out, double *room) {
    const long n = w->n;
    int stride;
    double *D = w->d == w->ld ? out : room + 2 * n;
    if (w->rule != CAYLEY) {
        const double *W = T(given)(w, k, room, &stride);
        T(transpose)(w->ld, stride, w->alpha, W, room + n);
    }
    T(derivative_rows)(w, room + n, U, M, D, room + 3 * n);
    T(narrow)(w, D, out);
}

/* C = U B, or U^T B for back, for the layer k, which is turned into `unit` where it has a rule. */
INLINE void T(layer)(const Work *w, long k, const double *unit, int back, const double *B, double *C, double *room) {
    int stride = w->ld;
    const double *U = w->turned ? unit : T(given)(w, k, room, &stride);
    const double alpha = w->rule == EULER ? w->alpha : 1, *S = w->rule == EULER ? B : 0;
    PRODUCT(w->ld, w->d, U, back == w->turned ? stride : 1, back == w->turned ? 1 : stride, B, alpha, S, C);
}

/* The product of the layers of a part; `kept` gets the transposes of those before each layer but the first, and `units`
   the transposed layers of a rule: all of them, or the last one. room: 12 n. */
static void T(scan)(Work *w, long t, double *kept, double *units, int all, double *product, double *room) {
    const int d = w->d, ld = w->ld;
    const long n = w->n, from = FIRST(w, t), to = LAST(w, t);
    double *now = room + n, *next = room + 2 * n;
    for (long k = from; k < to; k++) {
        double *unit = units + (all ? k - from : 0) * n;
        if (w->turned && !T(unit)(w, k, unit, room + 3 * n)) {
            __atomic_store_n(&w->failed, 1, __ATOMIC_RELAXED);
            return;
        }
        if (k > from) {
            if (kept) T(transpose)(ld, ld, 1, now, kept + (k - from - 1) * n);
            if (!product && k == to - 1) return;
            T(layer)(w, k, unit, 0, now, next, room);
            double *swap = now;
            now = next, next = swap;
        } else if (w->turned)
            T(transpose)(ld, ld, 1, unit, now);
        else {
            const double *W = w->W + k * d * d, alpha = w->rule == EULER ? w->alpha : 1;
            memset(now, 0, n * sizeof(double));
            for (int i = 0; i < d; i++)
                for (int j = 0; j < d; j++) now[i * ld + j] = alpha * W[i * d + j] + (w->rule == EULER && i == j);
        }
    }
    if (product) memcpy(product, now, n * sizeof(double));
}

static void T(products)(Work *w, long t, double *room) {
    const long n = w->n, from = FIRST(w, t);
    double *product = w->products + t * n;
    if (w->kept)
        T(scan)(w, t, w->kept + from * n, w->units + from * n, 1, product, room);
    else
        T(scan)(w, t, 0, room, 0, product, room + n);
}

static void T(layers)(Work *w, long t, double *room) {
    const int d = w->d, ld = w->ld;
    const long n = w->n, from = FIRST(w, t);
    double *now = w->products + t * n, *next = room + n, *kept, *units;
    if (w->kept)
        kept = w->kept + from * n, units = w->units + from * n;
    else {
        kept = room + w->rooms * n, units = kept + w->length * n;
        T(scan)(w, t, kept, units, 1, 0, room);
    }
    for (long k = LAST(w, t) - 1; k >= from; k--) {
        double *out = w->out + k * d * d, *here = d == ld && !w->turned ? out : room + 2 * n;
        const double *M = k > from ? here : now, *unit = units + (k - from) * n;
        if (k > from) PRODUCT(ld, d, now, ld, 1, kept + (k - from - 1) * n, 1, 0, here);
        if (w->turned)
            T(adjoint)(w, k, unit, M, out, room + 3 * n);
        else
            T(narrow)(w, M, out);
        if (w->moves) T(move)(w, k, room);
        if (k == from) return;
        T(layer)(w, k, unit, 1, now, next, room);
        double *swap = now;
        now = next, next = swap;
    }
}
