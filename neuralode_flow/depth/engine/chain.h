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
        if (w->moves) T(move)(w, k, room);
        if (k == from) return;
        T(layer)(w, k, unit, 1, now, next, room);
        double *swap = now;
        now = next, next = swap;
    }
}
