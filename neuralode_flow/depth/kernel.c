/* Depth products and gradients of small dense matrices: plain C, float64, C-contiguous arrays.

   flow_*: the collocation equations of the continuous model (docs/performance.md). Both halves are put such that they
   read alike: X' = X B with X = I in the middle of the panel, where X = u^T and B = W^T, or X = v and B = -W. With the
   slopes f = (I + J f) B a sweep is one product per node.
   chain_*: a chain of layers U_L ... U_1, given as they are or as W_k with a layer rule (layers.py).
   The caller gives the scratch memory; forward writes z, backward takes the gradient there. A scratch is used by one
   caller at a time, from forward to backward. Nothing else is kept.

   The file includes itself: once for each instruction set (TARGET), and in it for each type of number (REAL).
   Matrices in the scratch have rows of ld >= d numbers, and n >= ld^2 numbers in all. Those of a flow are filled up with
   zeros; of those of a chain nothing is read from row and column d on. */

#if defined REAL /* -------------------------------------------------------------------- for each type of number */

typedef REAL R(full) __attribute__((vector_size(BYTES), aligned(sizeof(REAL)), may_alias));
typedef REAL R(part) __attribute__((vector_size(BYTES / 2), aligned(sizeof(REAL)), may_alias));

/* C = S + alpha A B for some rows and the columns of one vector; A is read by numbers, with any strides. */
#define TILE(name, vector, ROWS)                                                                                       \
    INLINE void name(int k, const REAL *A, long ar, long ak, const REAL *B, REAL alpha, const REAL *S, REAL *C, int ld) { \
        vector acc[ROWS] = {{0}};                                                                                      \
        for (int j = 0; j < k; j++) {                                                                                  \
            vector b = *(const vector *)(B + (long)j * ld);                                                            \
            UNROLL for (int r = 0; r < ROWS; r++) acc[r] += A[r * ar + j * ak] * b;                                    \
        }                                                                                                              \
        UNROLL for (int r = 0; r < ROWS; r++) *(vector *)(C + r * ld) =                                                \
            S ? *(const vector *)(S + r * ld) + alpha * acc[r] : alpha * acc[r];                                       \
    }
TILE(R(full8), R(full), 8)
TILE(R(full4), R(full), 4)
TILE(R(part8), R(part), 8)
TILE(R(part4), R(part), 4)
#undef TILE

#if BYTES == 64
/* The same for 6 rows and 12 columns of double. */
INLINE void R(six)(int k, const REAL *A, long ar, long ak, const REAL *B, REAL alpha, const REAL *S, REAL *C) {
    enum { WIDE = BYTES / sizeof(REAL), LD = 12 };
    R(full) acc[6] = {{0}};
    R(part) rest[6] = {{0}};
    for (int j = 0; j < k; j++) {
        R(full) b = *(const R(full) *)(B + j * LD);
        R(part) c = *(const R(part) *)(B + j * LD + WIDE);
        UNROLL for (int r = 0; r < 6; r++) acc[r] += A[r * ar + j * ak] * b, rest[r] += A[r * ar + j * ak] * c;
    }
    UNROLL for (int r = 0; r < 6; r++) {
        R(full) *to = (R(full) *)(C + r * LD);
        R(part) *more = (R(part) *)(C + r * LD + WIDE);
        *to = S ? *(const R(full) *)(S + r * LD) + alpha * acc[r] : alpha * acc[r];
        *more = S ? *(const R(part) *)(S + r * LD + WIDE) + alpha * rest[r] : alpha * rest[r];
    }
}
#endif

/* C = S + alpha A B for some rows of A, S and C; ld and they are multiples of 4, of 8 for float. S may be C or NULL, A
   and B may not be C. */
static void R(product)(int rows, int ld, int d, const REAL *A, long ar, long ak, const REAL *B, REAL alpha, const REAL *S, REAL *C) {
    const int wide = BYTES / sizeof(REAL);
#if BYTES == 64
    if (rows == 8 && ld == 8 && wide == 8) {
        R(full8)(d, A, ar, ak, B, alpha, S, C, 8);
        return;
    }
    if (rows == 12 && ld == 12 && wide == 8) {
        R(six)(d, A, ar, ak, B, alpha, S, C);
        R(six)(d, A + 6 * ar, ar, ak, B, alpha, S ? S + 6 * 12 : 0, C + 6 * 12);
        return;
    }
#endif
    for (int j = 0; j < ld; j += wide)
        for (int i = 0; i < rows; i += 8) {
            const REAL *a = A + i * ar, *s = S ? S + i * ld + j : 0;
            REAL *c = C + i * ld + j;
            if (j + wide <= ld)
                (i + 8 <= rows ? R(full8) : R(full4))(d, a, ar, ak, B + j, alpha, s, c, ld);
            else
                (i + 8 <= rows ? R(part8) : R(part4))(d, a, ar, ak, B + j, alpha, s, c, ld);
        }
}

/* J f at two nodes that lie opposite each other: the even part of f gives the odd part of it and vice versa, which is
   half the work. F holds f_i + f_i' and then f_i - f_i' of the pairs, from the middle outwards, in pieces of CHUNK
   numbers, so that it is read from one end to the other; c has their weights. */
static void R(integral)(int pairs, int odd, long n, const REAL *c, const REAL *F, REAL *right, REAL *left) {
    enum { WIDE = BYTES / sizeof(REAL), MOST = CHUNK / WIDE, GROUP = MOST < 4 ? MOST : 4 };
    for (long q = 0; q < n; q += GROUP * WIDE) {
        const REAL *at = F + q / CHUNK * CHUNK * 2 * pairs + q % CHUNK;
        R(full) a[GROUP] = {{0}}, b[GROUP] = {{0}};
        for (int p = 0; p < pairs; p++)
            UNROLL for (int g = 0; g < GROUP; g++) a[g] += c[p] * *(const R(full) *)(at + p * CHUNK + g * WIDE);
        for (int p = pairs + odd; p < 2 * pairs; p++)
            UNROLL for (int g = 0; g < GROUP; g++) b[g] += c[p] * *(const R(full) *)(at + p * CHUNK + g * WIDE);
        UNROLL for (int g = 0; g < GROUP; g++) {
            *(R(full) *)(right + q + g * WIDE) = b[g] + a[g];
            *(R(full) *)(left + q + g * WIDE) = b[g] - a[g];
        }
    }
}

/* Puts f of the pair p into F: the one node in the middle where there is no left one. */
INLINE void R(put)(int pairs, int p, long n, const REAL *right, const REAL *left, REAL *F) {
    F += p * CHUNK;
    for (long q = 0; q < n; q += CHUNK, F += 2 * pairs * CHUNK)
        for (int r = 0; r < CHUNK; r++) {
            F[r] = left ? right[q + r] + left[q + r] : right[q + r];
            F[pairs * CHUNK + r] = left ? right[q + r] - left[q + r] : 0;
        }
}

/* The largest |x - y|, or |x|. Positive numbers are ordered like the integers of their bits, NaN above all. */
static double R(largest)(long n, const REAL *x, const REAL *y) {
    typedef BITS bits __attribute__((vector_size(BYTES)));
    enum { WIDE = BYTES / sizeof(REAL) };
    bits most = {0};
    for (long q = 0; q < n; q += WIDE) {
        R(full) gap = *(const R(full) *)(x + q);
        if (y) gap -= *(const R(full) *)(y + q);
        bits size = (bits)gap & (BITS)(~0ull >> (65 - 8 * sizeof(BITS))), more = size > most;
        most = (size & more) | (most & ~more);
    }
    union { BITS i; REAL x; } result = {0};
    for (int g = 0; g < WIDE; g++)
        if (most[g] > result.i) result.i = most[g];
    return result.x;
}

/* f = S + (J f) B by Gauss-Seidel sweeps over the pairs of nodes, from the middle outwards, for a strip of rows, `n`
   numbers of each matrix. B and S are ordered alike: (the node in the middle,) then the right and the left one of each
   pair, `bn` and `sn` numbers apart. The change of J f at the outermost pair is its error a sweep ago, and each sweep
   gains what the one before did or more. Ends when what is left of the error is below `tolerance` beside I + J f; the
   last f is ahead of it by about as much as a sweep in the order of Jacobi gains. Returns the largest entry of J f there,
   or -1 where it fails, as it does for a first change above `limit`. room: 6 n. */
static double R(sweeps)(const Work *w, int rows, long n, const REAL *c, const REAL *B, long bn, const REAL *S, long sn,
                        double tolerance, double limit, REAL *F, REAL *room) {
    const int ld = w->ld, pairs = w->pairs, odd = w->odd;
    const double round_off = sizeof(REAL) == 4 ? 2.4e-7 : 4.4e-16;
    REAL *f = room, *now = room + 2 * n, *old = room + 4 * n;
    memset(room, 0, 6 * n * sizeof(REAL));
    if (odd) R(put)(pairs, 0, n, S, 0, F);
    for (int p = odd; p < pairs; p++) R(put)(pairs, p, n, S + (2 * p - odd) * sn, S + (2 * p - odd + 1) * sn, F);
    if (pairs == odd) return 0;
    R(integral)(pairs, odd, n, c + (pairs - 1) * 2 * pairs, F, old, old + n);
    double before = 0;
    for (int sweep = 1; sweep <= MAX_SWEEPS; sweep++) {
        for (int p = odd; p < pairs; p++) {
            R(integral)(pairs, odd, n, c + p * 2 * pairs, F, now, now + n);
            for (int side = 0; side < 2; side++) {
                const int k = 2 * p - odd + side;
                R(product)(rows, ld, w->d, now + side * n, ld, 1, B + k * bn, 1, S + k * sn, f + side * n);
            }
            R(put)(pairs, p, n, f, f + n, F);
        }
        const double change = R(largest)(2 * n, now, old), size = R(largest)(2 * n, now, 0),
                     rate = fmin(fmax(change / before, FASTEST), 1);
        if ((sweep == 1 && !(change <= limit)) || !(size <= FAR)) return -1;
        /* A pair that is alone sees no change in the first sweep. */
        if (sweep > 1 && (change * rate <= tolerance * (1 + size) || change <= round_off * size)) return size;
        before = change;
        REAL *swap = now;
        now = old, old = swap;
    }
    return -1;
}

#elif defined TARGET /* ---------------------------------------------------------------- for each instruction set */

#define REAL double
#define BITS int64_t
#include "kernel.c"
#undef REAL
#undef BITS
#define REAL float
#define BITS int32_t
#include "kernel.c"
#undef REAL
#undef BITS
#define ROWS CAT(productdouble, TARGET)
#define PRODUCT(ld, ...) ROWS(ld, ld, __VA_ARGS__)
#define INTEGRAL CAT(integraldouble, TARGET)

/* y = alpha x^T by blocks of 4 x 4; the rows of x have `stride` numbers. */
static void T(transpose)(int ld, int stride, double alpha, const double *x, double *y) {
    for (int i = 0; i < ld; i += 4)
        for (int j = 0; j < ld; j += 4) {
            four r[4];
            UNROLL for (int k = 0; k < 4; k++) r[k] = alpha * *(const four *)(x + (j + k) * stride + i);
            const four a = SHUFFLE(r[0], r[1], 0, 4, 2, 6), b = SHUFFLE(r[0], r[1], 1, 5, 3, 7),
                       c = SHUFFLE(r[2], r[3], 0, 4, 2, 6), e = SHUFFLE(r[2], r[3], 1, 5, 3, 7);
            double *to = y + i * ld + j;
            *(four *)to = SHUFFLE(a, c, 0, 1, 4, 5);
            *(four *)(to + ld) = SHUFFLE(b, e, 0, 1, 4, 5);
            *(four *)(to + 2 * ld) = SHUFFLE(a, c, 2, 3, 6, 7);
            *(four *)(to + 3 * ld) = SHUFFLE(b, e, 2, 3, 6, 7);
        }
}

/* The k-th given matrix, and how many numbers its rows have: d, as they are given, where the rest of what is read of it
   lies in the array as well. It falls into the rows and columns from d on, of which nothing is read. */
INLINE const double *T(given)(const Work *w, long k, double *room, int *stride) {
    const int d = w->d, ld = w->ld;
    const double *x = w->W + k * d * d;
    *stride = d;
    if (k * d * d + (ld - 1) * d + ld <= w->members * w->L * d * d) return x;
    for (int i = 0; i < d; i++) memcpy(room + i * ld, x + i * d, d * sizeof(double));
    *stride = ld;
    return room;
}

/* A matrix without what fills it up. What is too much in a row is overwritten by the next. */
INLINE void T(narrow)(const Work *w, const double *x, double *out) {
    const int d = w->d, ld = w->ld;
    if (x == out) return;
    for (int i = 0; i < d - 1; i++)
        for (int j = 0; j < ld; j += 4) *(four *)(out + i * d + j) = *(const four *)(x + i * ld + j);
    memcpy(out + (d - 1) * d, x + (d - 1) * ld, d * sizeof(double));
}

/* z of a member from the products of its parts; `outer` gets the transposed product of the parts before each. */
static void T(join)(Work *w, long member, double *room) {
    double *now = room, *next = room + w->n;
    memcpy(now, w->products + member * w->parts * w->n, w->n * sizeof(double));
    for (long t = member * w->parts + 1; t < (member + 1) * w->parts; t++) {
        T(transpose)(w->ld, w->ld, 1, now, w->outer + t * w->n);
        PRODUCT(w->ld, w->d, w->products + t * w->n, w->ld, 1, now, 1, 0, next);
        double *swap = now;
        now = next, next = swap;
    }
    T(narrow)(w, now, w->z + member * w->d * w->d);
}

/* `outer` becomes the gradient with respect to the product of each part. */
static void T(spread)(Work *w, long member, double *room) {
    const long n = w->n;
    double *now = room, *next = room + n;
    memset(now, 0, n * sizeof(double));
    for (int i = 0; i < w->d; i++)
        memcpy(now + i * w->ld, w->G + (member * w->d + i) * w->d, w->d * sizeof(double));
    for (long t = (member + 1) * w->parts - 1; t > member * w->parts; t--) {
        PRODUCT(w->ld, w->d, now, w->ld, 1, w->outer + t * n, 1, 0, next);
        memcpy(w->outer + t * n, next, n * sizeof(double));
        PRODUCT(w->ld, w->d, w->products + t * n, 1, w->ld, now, 1, 0, next);
        double *swap = now;
        now = next, next = swap;
    }
    memcpy(w->outer + member * w->parts * n, now, n * sizeof(double));
}

/* The node of W that stands at place k of a half. */
INLINE int T(node)(int m, int k) {
    const int odd = m & 1, p = (k + odd) / 2;
    return (k + odd) % 2 ? m - 1 - m / 2 - p : m / 2 + p;
}

/* Some rows, n numbers from `from` on, of one half of one panel: X - I at the nodes, ordered from the middle, and at the
   right and the left end. Bf is B in float. */
static int T(strip)(const Work *w, long t, int rows, long from, long n, const double *B, const float *Bf, double *room) {
    const int m = w->m, d = w->d, ld = w->ld, pairs = w->pairs, odd = w->odd;
    const double limit = LARGEST * LARGEST / 2;
    double *X = w->X + t * m * w->n + from, *ends = w->ends + t * 2 * w->n + from, *F = room, *tmp = F + 2 * pairs * n;
    if (!MIXED(w)) {
        if (CAT(sweepsdouble, TARGET)(w, rows, n, w->c, B, w->n, B + from, w->n, TOLERANCE, limit, F, tmp) < 0) return 0;
    } else {
        /* Sweeps in float; then the defect in double, and the same sweeps on it. */
        float *Ff = (float *)(tmp + 3 * n), *Sf = Ff + 2 * pairs * n, *tf = Sf + m * n;
        if (CAT(sweepsfloat, TARGET)(w, rows, n, w->cf, Bf, w->n, Bf + from, w->n, ROUGH, limit, Ff, tf) < 0) return 0;
        for (long q = 0; q < 2 * pairs * n; q++) F[q] = Ff[q];
        if (odd) CAT(putdouble, TARGET)(pairs, 0, n, B + from, 0, F);
        memset(Sf, 0, n * sizeof(float));
        double size = 1;
        for (int round = 0; size > REFINED; round++) {
            if (round == MAX_REFINEMENTS) return 0;
            for (int k = odd; k < m; k++) {
                const int p = (k + odd) / 2, left = (k + odd) % 2;
                const double *f = F + p * CHUNK, *b = B + k * w->n, sign = left ? -0.5 : 0.5;
                if (!left) INTEGRAL(pairs, odd, n, w->c + p * 2 * pairs, F, tmp, tmp + n);
                ROWS(rows, ld, d, tmp + left * n, ld, 1, b, 1, b + from, tmp + 2 * n);
                for (long q = 0; q < n; q += CHUNK, f += 2 * pairs * CHUNK)
                    for (int r = 0; r < CHUNK; r++)
                        Sf[k * n + q + r] = (float)(tmp[2 * n + q + r] - (0.5 * f[r] + sign * f[pairs * CHUNK + r]));
            }
            size = CAT(sweepsfloat, TARGET)(w, rows, n, w->cf, Bf, w->n, Sf, n, TOLERANCE, HUGE_VAL, Ff, tf);
            if (size < 0) return 0;
            for (long q = 0; q < 2 * pairs * n; q++) F[q] += Ff[q];
        }
    }
    if (odd) memset(X, 0, n * sizeof(double));
    for (int p = odd; p < pairs; p++)
        INTEGRAL(pairs, odd, n, w->c + p * 2 * pairs, F, X + (2 * p - odd) * w->n, X + (2 * p - odd + 1) * w->n);
    INTEGRAL(pairs, odd, n, w->c + pairs * 2 * pairs, F, ends, ends + w->n);
    return 1;
}

/* One half of one panel. The rows of X do not know of each other: they are taken in strips that stay in the cache. */
static void T(half)(Work *w, long t, double *room) {
    const int m = w->m, d = w->d, ld = w->ld;
    const long n = w->n;
    double *X = w->X + t * m * n, *ends = w->ends + t * 2 * n, *B = room;
    float *Bf = (float *)(B + m * n);
    memset(B, 0, m * n * sizeof(double));
    for (int k = 0; k < m; k++) {
        const double *from = w->W + (t / 2 * m + T(node)(m, k)) * d * d;
        for (int i = 0; i < d; i++)
            for (int j = 0; j < d; j++) B[k * n + i * ld + j] = t % 2 ? -from[i * d + j] : from[j * d + i];
    }
    for (long q = 0; MIXED(w) && q < m * n; q++) Bf[q] = (float)B[q];
    for (int row = 0; row < ld; row += w->rows) {
        const int rows = row + w->rows < ld ? w->rows : ld - row;
        const long size = rows == ld ? n : rows * ld;
        if (!T(strip)(w, t, rows, row * ld, size, B, Bf, room + 2 * m * n)) {
            __atomic_store_n(&w->failed, 1, __ATOMIC_RELAXED);
            return;
        }
    }
    for (int k = 0; k < m + 2; k++)
        for (int i = 0; i < d; i++) (k < m ? X + k * n : ends + (k - m) * n)[i * ld + i] += 1;
}

/* I - C, (C^-1 v(a))^T and u(b) of a panel, and its product P(b,a) = u(b) C^-1 v(a). */
static void T(across)(Work *w, long t, double *room) {
    const int d = w->d, ld = w->ld;
    const long n = w->n;
    const double *uT_end = w->ends + t * 4 * n, *v_end = uT_end + 2 * n, *v_start = v_end + n;
    double *minus = w->middle + t * 3 * n, *enterT = minus + n, *leave = enterT + n, *now = room, *next = room + n, q = 0;
    T(transpose)(ld, ld, 1, uT_end, leave);
    PRODUCT(ld, d, v_end, ld, 1, leave, -1, 0, minus);
    for (int i = 0; i < d; i++) minus[i * ld + i] += 1;
    for (int i = 0; i < d; i++) {
        double row = 0, column = 0;
        for (int j = 0; j < d; j++) row += fabs(minus[i * ld + j]), column += fabs(minus[j * ld + i]);
        if (!(row <= NEAR && column <= NEAR)) {
            __atomic_store_n(&w->failed, 1, __ATOMIC_RELAXED);
            return;
        }
        q = fmax(q, fmax(row, column));
    }
    w->terms[t] = q > 0 ? (int)(-39 / log(q)) : 0; /* e^-39 is 1/16 of the round-off */
    memcpy(now, v_start, n * sizeof(double));
    for (int k = 0; k < w->terms[t]; k++) {
        PRODUCT(ld, d, minus, ld, 1, now, 1, v_start, next);
        double *swap = now;
        now = next, next = swap;
    }
    T(transpose)(ld, ld, 1, now, enterT);
    PRODUCT(ld, d, leave, ld, 1, now, 1, 0, w->products + t * n);
}

/* v_i^T [C^-T u(b)^T outer (C^-1 v(a))^T] u_i^T for a piece of the nodes of a panel. */
static void T(nodes)(Work *w, long piece, double *room) {
    const int m = w->m, d = w->d, ld = w->ld, cut = (int)(piece % w->cuts);
    const long n = w->n, t = piece / w->cuts;
    const double *minus = w->middle + t * 3 * n, *uT = w->X + t * 2 * m * n, *v = uT + m * n;
    double *start = room, *inner = room + n, *next = room + 2 * n, *left = room + 3 * n;
    PRODUCT(ld, d, w->outer + t * n, ld, 1, minus + n, 1, 0, next);
    PRODUCT(ld, d, minus + 2 * n, 1, ld, next, 1, 0, start);
    memcpy(inner, start, n * sizeof(double));
    for (int k = 0; k < w->terms[t]; k++) {
        PRODUCT(ld, d, minus, 1, ld, inner, 1, start, next);
        double *swap = inner;
        inner = next, next = swap;
    }
    for (int k = m * cut / w->cuts; k < m * (cut + 1) / w->cuts; k++) {
        double *out = w->out + (t * m + T(node)(m, k)) * d * d, *here = d == ld ? out : next;
        PRODUCT(ld, d, v + k * n, 1, ld, inner, 1, 0, left);
        PRODUCT(ld, d, left, ld, 1, uT + k * n, 1, 0, here);
        T(narrow)(w, here, out);
    }
}

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

/* The Frobenius norm. */
static double T(norm)(const Work *w, const double *x) {
    double sum = 0;
    for (int i = 0; i < w->d; i++)
        for (int j = 0; j < w->d; j++) sum += x[i * w->ld + j] * x[i * w->ld + j];
    return sqrt(sum);
}

/* y = a I + b x */
INLINE void T(affine)(const Work *w, double a, double b, const double *x, double *y) {
    for (long q = 0; q < w->ld * w->ld; q++) y[q] = b * x[q];
    for (int i = 0; i < w->d; i++) y[i * w->ld + i] += a;
}

/* U = exp(B), and D = its derivative at B in the direction M; where U or M is 0 it is left out. Taylor's series to
   round-off by Horner's rule in B^2, q_j = (2j + 1) I + B + B^2 q_j+1 / ((2j + 2)(2j + 3)), of B halved until it is
   small, and then squares. Returns 0 where B is too large. room: 7 n. */
static int T(exponential)(const Work *w, const double *B, const double *M, double *U, double *D, double *room) {
    /* Up to which norm the next term of the derivative is below round-off, by the number of steps. */
    static const double reach[] = {0, 5.5e-6, 1.2e-3, 1.4e-2, 6e-2, 0.15, 0.3, 0.5};
    enum { MOST = sizeof reach / sizeof *reach - 1 };
    const int d = w->d, ld = w->ld;
    const long n = w->n;
    double *square = room + n, *moved = room + 2 * n, *q = room + 3 * n, *next = room + 4 * n, *one = room + 5 * n,
           *other = room + 6 * n, norm = T(norm)(w, B), factor = 1;
    const double *p = M;
    int squares = 0, steps = 1;
    if (!(norm <= FAR)) return 0;
    for (; norm > reach[MOST]; norm /= 2, factor /= 2) squares++;
    while (norm > reach[steps]) steps++;
    if (squares) {
        T(affine)(w, 0, factor, B, room);
        B = room;
    }
#define P(A, B, alpha, S, C) PRODUCT(ld, d, A, ld, 1, B, alpha, S, C)
#define SWAP(x, y) do { double *swap = x; x = y, y = swap; } while (0)
    P(B, B, 1, 0, square);
    T(affine)(w, 2 * steps + 1, 1, B, q);
    if (M) {
        P(B, M, 1, 0, moved);
        P(M, B, 1, moved, moved);
    }
    for (int j = steps - 1; j >= 0; j--) {
        const double alpha = 1 / ((2 * j + 2.0) * (2 * j + 3));
        if (M) {
            P(moved, q, alpha, M, one);
            P(square, p, alpha, one, one);
            p = one;
            SWAP(one, other);
        }
        if (j > 0 || squares || U) {
            P(square, q, alpha, B, next);
            for (int i = 0; i < d; i++) next[i * ld + i] += 2 * j + 1;
            SWAP(q, next);
        }
    }
    for (int k = 0; k < squares; k++) {
        if (M) {
            P(q, p, 1, 0, one);
            P(p, q, 1, one, one);
            p = one;
            SWAP(one, other);
        }
        if (U || k + 1 < squares) {
            P(q, q, 1, 0, next);
            SWAP(q, next);
        }
    }
#undef P
#undef SWAP
    if (U) T(affine)(w, 0, 1, q, U);
    if (M) T(affine)(w, 0, factor, p, D);
    return 1;
}

/* The transpose of the layer rule(alpha W) for W = the k-th given matrix; 0 where there is none. room: 8 n. */
static int T(unit)(const Work *w, long k, double *U, double *room) {
    const int d = w->d, ld = w->ld;
    int stride, good = 1;
    const double *W = T(given)(w, k, room, &stride);
    double *B = room + w->n;
    T(transpose)(ld, stride, w->alpha, W, B);
    if (w->rule == RK2) {
        PRODUCT(ld, d, B, ld, 1, B, 0.5, B, U);
        for (int i = 0; i < d; i++) U[i * ld + i] += 1;
    } else if (w->rule == CAYLEY) {
        T(affine)(w, 1, -0.5, B, U);
        good = T(invert)(ld, d, T(norm)(w, B) > 1, U); /* below that all pivots are above 1/2 */
        T(affine)(w, -1, 2, U, U);
    } else
        good = T(exponential)(w, B, 0, U, 0, room + w->n);
    return good;
}

/* D = the gradient with respect to alpha W, from that with respect to the layer, M; U as `unit` gave it. */
static void T(adjoint)(const Work *w, long k, const double *U, const double *M, double *out, double *room) {
    const int d = w->d, ld = w->ld;
    const long n = w->n;
    int stride;
    double *B = room + n, *D = d == ld ? out : room + 2 * n;
    if (w->rule == CAYLEY) { /* (U + I) M (U + I) / 4 */
        PRODUCT(ld, d, U, ld, 1, M, 1, M, B);
        T(affine)(w, 0, 0.25, B, B);
        PRODUCT(ld, d, B, ld, 1, U, 1, B, D);
    } else {
        const double *W = T(given)(w, k, room, &stride);
        T(transpose)(ld, stride, w->alpha, W, B);
        if (w->rule == RK2) {
            PRODUCT(ld, d, B, ld, 1, M, 0.5, M, D);
            PRODUCT(ld, d, M, ld, 1, B, 0.5, D, D);
        } else
            T(exponential)(w, B, M, 0, D, room + 3 * n);
    }
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
   the transposed layers of a rule: all of them, or the last one. room: 11 n. */
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
    double *now = w->outer + t * n, *next = room + n, *kept, *units;
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
        if (k == from) return;
        T(layer)(w, k, unit, 1, now, next, room);
        double *swap = now;
        now = next, next = swap;
    }
}

#undef ROWS
#undef PRODUCT
#undef INTEGRAL
#undef TARGET
#undef BYTES

#else /* ------------------------------------------------------------------------------------------------- once */

#define _GNU_SOURCE
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

enum { CHUNK = 32, FOURS = 12, MAX_SWEEPS = 40, MAX_REFINEMENTS = 4, MAX_THREADS = 16, LARGEST_D = 256 };
enum { PLAIN, EULER, RK2, CAYLEY, EXP }; /* layer rules; PLAIN: the layers as they are */
#define LARGEST 3.0     /* h|W|, as seen in the first sweep */
#define FAR 1e3         /* I + J f */
#define NEAR 0.25       /* the largest sum of a row or column of |C - I| */
#define FASTEST 0.01    /* what a sweep is trusted to gain, were it more in the last one by chance */
#define TOLERANCE 3e-16 /* of J f */
#define ROUGH 4e-8      /* of a solution in float that will be refined */
#define REFINED 6e-8    /* a correction below it is as good in float */
#define STRIP (1L << 18)   /* bytes of f in float, of all nodes of a panel, that are worked on together */
#define SEGMENT (1L << 18) /* bytes of a part of a long chain, whose products before each layer are made twice */
#define SHORT (1L << 21)   /* bytes of a chain up to which they are stored */
#define WORTH 4e6          /* multiplications that are worth another thread */

typedef double four __attribute__((vector_size(32), aligned(8), may_alias));

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")
#define CAT_(x, y) x##y
#define CAT(x, y) CAT_(x, y)
#define T(x) CAT(x, TARGET)
#define R(x) CAT(CAT(x, REAL), TARGET)
#ifdef __clang__
#define SHUFFLE(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
typedef int64_t Order __attribute__((vector_size(32)));
#define SHUFFLE(x, y, ...) __builtin_shuffle(x, y, (Order){__VA_ARGS__})
#endif

/* The parts of a member are the panels of a flow, or the segments of a chain of L layers. */
typedef struct {
    int d, ld, m, pairs, odd, rows, cuts, threads, failed, rule, turned, rooms;
    long members, parts, n, L, length, room_size;
    double alpha;
    const double *W, *G;
    double *c, *X, *ends, *middle, *products, *outer, *kept, *units, *room, *z, *out;
    float *cf;
    int *terms;
} Work;

#define MIXED(w) ((w)->ld % 8 == 0) /* vectors of float fit into the rows */
#define FIRST(w, t) ((t) / (w)->parts * (w)->L + (t) % (w)->parts * (w)->length)
#define LAST(w, t) ((t) % (w)->parts == (w)->parts - 1 ? ((t) / (w)->parts + 1) * (w)->L : FIRST(w, t) + (w)->length)

#if defined __x86_64__ && defined __GNUC__ && !defined __clang__
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx2,fma,prefer-vector-width=512")
#define TARGET _avx512
#define BYTES 64
#include "kernel.c"
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define TARGET _avx2
#define BYTES 32
#include "kernel.c"
#pragma GCC pop_options
#define BEST(name) (level() == 2 ? name##_avx512 : level() == 1 ? name##_avx2 : name##_plain)
#define HAS(feature) (__builtin_cpu_supports(feature) != 0)
#else
#define BEST(name) name##_plain
#define HAS(feature) 0
#endif
#define TARGET _plain
#define BYTES 16
#include "kernel.c"

static int most_level = 2;
void set_level(int level) { most_level = level; } /* for tests: a lower instruction set */

static inline int level(void) {
    const int best = HAS("avx512f") && HAS("avx512dq") ? 2 : HAS("avx2") && HAS("fma") ? 1 : 0;
    return best < most_level ? best : most_level;
}

typedef void Step(Work *, long, double *);
typedef struct {
    Work *w;
    Step *step;
    long count, next;
    int threads, arrived;
} Job;

/* What one thread does: whatever step is the next. */
static void labour(void *arg) {
    Job *job = arg;
    const int me = __atomic_fetch_add(&job->arrived, 1, __ATOMIC_RELAXED);
    if (me >= job->threads) return;
    double *room = job->w->room + me * job->w->room_size;
    for (long t; (t = __atomic_fetch_add(&job->next, 1, __ATOMIC_RELAXED)) < job->count;) job->step(job->w, t, room);
}

static void *run(void *arg) {
    labour(arg);
    return 0;
}

/* GOMP_parallel of the OpenMP library that torch has loaded: its idle threads wait for work by spinning, and others
   beside them would only get the time that is left. They do not survive a fork. */
typedef void Pool(void (*)(void *), void *, unsigned, unsigned);
static Pool *pool;
static pid_t home;
void set_pool(void *function) { pool = (Pool *)function, home = getpid(); }

/* Where helpers of our own may run: not on the processor of the caller, where a new thread often starts and stays. */
static pthread_attr_t *elsewhere(pthread_attr_t *room) {
#ifdef __GLIBC__
    cpu_set_t allowed;
    const int here = sched_getcpu();
    if (here < 0 || sched_getaffinity(0, sizeof allowed, &allowed)) return 0;
    CPU_CLR(here, &allowed);
    if (!CPU_COUNT(&allowed) || pthread_attr_init(room)) return 0;
    if (!pthread_attr_setaffinity_np(room, sizeof allowed, &allowed)) return room;
    pthread_attr_destroy(room);
#endif
    return 0;
}

/* step(w, t, room) for t = 0 ... count - 1, by the threads of torch, or by new ones that live as long as the call. */
static void each(Work *w, int threads, long count, Step *step) {
    if (threads > count) threads = (int)count;
    Job job = {w, step, count, 0, threads, 0};
    if (threads <= 1)
        for (long t = 0; t < count; t++) step(w, t, w->room);
    else if (pool && getpid() == home)
        pool(labour, &job, (unsigned)threads, 0);
    else {
        pthread_t ids[MAX_THREADS];
        int made = 0;
        pthread_attr_t room, *where = elsewhere(&room);
        while (made < threads - 1 && !pthread_create(&ids[made], where, run, &job)) made++;
        labour(&job);
        while (made > 0) pthread_join(ids[--made], 0);
        if (where) pthread_attr_destroy(where);
    }
}

/* How many of the threads so many products are worth. */
static int crew(double products, int d, int threads) { return products * d * d * d < WORTH ? 1 : threads; }

/* What is known of the sizes alone. For a chain m is 0, for a flow L is. Returns the size of the scratch in doubles. */
static long plan(Work *w, double *memory, long members, long panels, long L, int m, int d, int rule, int threads) {
    static const double cost[] = {3, 3, 7, 12, 18}; /* products for each layer, of each rule */
    const double products = (m ? 24.0 * panels * m : cost[rule] * L) * members;
    const int ld = d <= FOURS ? (d + 3) / 4 * 4 : (d + 7) / 8 * 8;
    const long n = ((long)ld * ld + CHUNK - 1) / CHUNK * CHUNK;
    threads = crew(products, d, threads < 1 ? 1 : threads > MAX_THREADS ? MAX_THREADS : threads);
    const int turned = rule > EULER, keep = !m && members * L * n * (long)sizeof(double) <= SHORT;
    long length = keep ? (members >= threads ? L : (L + threads - 1) / threads) : SEGMENT / (n * (long)sizeof(double)) + 2;
    if (length > L) length = L;
    const long parts = m ? panels : (L + length - 1) / length, all = members * parts, pairs = (m + 1) / 2;
    *w = (Work){.d = d, .ld = ld, .m = m, .pairs = (int)pairs, .odd = m & 1, .threads = threads, .members = members,
                .parts = parts, .n = n, .L = L, .length = length, .cuts = threads > all ? threads : 1, .rule = rule, .turned = turned,
                .rooms = m ? (int)(2 * m + 2 * pairs + 3 + (2 * pairs + m + 6) / 2 + 1) : turned ? 13 : 4};
    w->rows = m ? (int)(STRIP / (2 * pairs * ld * (long)sizeof(float)) / 8 * 8) : ld;
    if (w->rows < 8) w->rows = 8;
    /* Strips end where a CHUNK does: rows of 4 or 12 numbers, of small matrices, stay together. */
    if (w->rows > ld || ld % 8) w->rows = ld;
    w->room_size = (w->rooms + (m || keep ? 0 : turned ? 2 * length : length)) * n;
    long used = (sizeof(Work) + 63) / 64 * 8;
#define PLACE(name, size) w->name = (void *)(memory + used), used += ((size) + 7) / 8 * 8
    PLACE(room, threads * w->room_size);
    PLACE(products, all * n);
    PLACE(outer, all * n);
    PLACE(kept, keep ? members * L * n : 0);
    PLACE(units, keep && turned ? members * L * n : 0);
    if (!keep) w->kept = 0;
    PLACE(c, (pairs + 1) * 2 * pairs);
    PLACE(cf, (pairs + 1) * pairs);
    PLACE(terms, all);
    PLACE(X, all * 2 * m * n);
    PLACE(ends, m ? all * 4 * n : 0);
    PLACE(middle, m ? all * 3 * n : 0);
    return used;
}

/* Asks for huge pages: the faults of small ones in new memory of many megabytes take as long as the products. */
static void huge(void *memory, long numbers) {
#ifdef MADV_HUGEPAGE
    const uintptr_t page = 1 << 21, start = ((uintptr_t)memory + page - 1) & -page,
                    end = ((uintptr_t)memory + numbers * sizeof(double)) & -page;
    if (end > start) madvise((void *)start, end - start, MADV_HUGEPAGE);
#endif
}

/* Bytes of scratch memory, to be aligned to 64. */
long flow_scratch(long members, int panels, int m, int d, int threads) {
    Work w;
    return plan(&w, 0, members, panels, 0, m, d, PLAIN, threads) * (long)sizeof(double);
}

/* W (members, panels * m, d, d) -> z (members, d, d). J (m, m) and ends (2, m) are the integrals of the Lagrange
   polynomials from the middle of a panel to its nodes, and to its start and end. Returns 0, or 1 where W is too large
   or not resolved by the grid, and z means nothing. */
int flow_forward(const double *W, const double *J, const double *ends, long members, int panels, int m, int d,
                 int threads, void *scratch, double *z) {
    Work *w = scratch;
    huge(scratch, plan(w, scratch, members, panels, 0, m, d, PLAIN, threads));
    w->W = W, w->z = z;
    for (int p = 0; p <= w->pairs; p++) {
        const double *row = p < w->pairs ? J + (m / 2 + p) * m : ends + m;
        double *c = w->c + p * 2 * w->pairs;
        for (int q = 0; q < w->pairs; q++) {
            const int right = m / 2 + q, left = m - 1 - right;
            c[q] = right == left ? row[right] : (row[right] + row[left]) / 2;
            c[w->pairs + q] = (row[right] - row[left]) / 2;
        }
    }
    for (int q = 0; q < (w->pairs + 1) * 2 * w->pairs; q++) w->cf[q] = (float)w->c[q];
    each(w, w->threads, 2 * members * panels, BEST(half));
    if (!w->failed) each(w, crew(3.0 * members * panels, w->d, w->threads), members * panels, BEST(across));
    if (!w->failed) each(w, crew(1.0 * members * panels, w->d, w->threads), members, BEST(join));
    return w->failed;
}

/* G (members, d, d) -> out, of the shape of W: P(1,s)^T G P(s,0)^T at the nodes. */
void flow_backward(const double *G, void *scratch, double *out) {
    Work *w = scratch;
    w->G = G, w->out = out;
    each(w, crew(2.0 * w->members * w->parts, w->d, w->threads), w->members, BEST(spread));
    each(w, w->threads, w->members * w->parts * w->cuts, BEST(nodes));
}

long chain_scratch(long members, long L, int d, int rule, int threads) {
    Work w;
    return plan(&w, 0, members, 0, L, 0, d, rule, threads) * (long)sizeof(double);
}

/* W (members, L, d, d) -> z (members, d, d), the product of the layers U_k = rule(alpha W_k), or W_k where the rule is
   PLAIN. Returns 0, or 1 where a layer cannot be made, and z means nothing. */
int chain_forward(const double *W, long members, long L, int d, int rule, double alpha, int threads, void *scratch,
                  double *z) {
    Work *w = scratch;
    huge(scratch, plan(w, scratch, members, 0, L, 0, d, rule, threads));
    w->W = W, w->alpha = alpha, w->z = z;
    each(w, w->threads, members * w->parts, BEST(products));
    if (!w->failed) each(w, crew(1.0 * members * w->parts, w->d, w->threads), members, BEST(join));
    return w->failed;
}

/* G (members, d, d) -> out, of the shape of W: the gradients with respect to alpha W_k, or to W_k itself. For layers as
   they are those are (U_L ... U_k+1)^T G (U_k-1 ... U_1)^T. */
void chain_backward(const double *G, void *scratch, double *out) {
    Work *w = scratch;
    w->G = G, w->out = out;
    huge(out, w->members * w->L * w->d * w->d);
    each(w, crew(2.0 * w->members * w->parts, w->d, w->threads), w->members, BEST(spread));
    each(w, w->threads, w->members * w->parts, BEST(layers));
}
#endif
