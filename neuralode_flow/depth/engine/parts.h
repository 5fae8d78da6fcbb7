/* Matrices as they are given and kept, and what joins the parts of a member: the panels of a flow, or segments of a chain. */

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
