/* Matrices as they are given and kept, and what joins the parts of a member: the panels of a flow, or segments of a chain. */

/* y = r^T for r of 4 rows, to rows that begin every `step` numbers. */
INLINE void T(turn)(const four *r, double *y, long step) {
    const four a = SHUFFLE(r[0], r[1], 0, 4, 2, 6), b = SHUFFLE(r[0], r[1], 1, 5, 3, 7),
               c = SHUFFLE(r[2], r[3], 0, 4, 2, 6), e = SHUFFLE(r[2], r[3], 1, 5, 3, 7);
    *(four *)y = SHUFFLE(a, c, 0, 1, 4, 5);
    *(four *)(y + step) = SHUFFLE(b, e, 0, 1, 4, 5);
    *(four *)(y + 2 * step) = SHUFFLE(a, c, 2, 3, 6, 7);
    *(four *)(y + 3 * step) = SHUFFLE(b, e, 2, 3, 6, 7);
}

/* y = alpha x^T by blocks of 4 x 4; the rows of x have `stride` numbers. */
static void T(transpose)(int ld, int stride, double alpha, const double *x, double *y) {
    for (int i = 0; i < ld; i += 4)
        for (int j = 0; j < ld; j += 4) {
            four r[4];
            UNROLL for (int k = 0; k < 4; k++) r[k] = alpha * *(const four *)(x + (j + k) * stride + i);
            T(turn)(r, y + i * ld + j, ld);
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
    const double *now = w->products + member * w->parts * w->n;
    for (long t = member * w->parts + 1; t < (member + 1) * w->parts; t++) {
        double *next = room + t % 2 * w->n;
        T(transpose)(w->ld, w->ld, 1, now, w->outer + t * w->n);
        PRODUCT(w->ld, w->d, w->products + t * w->n, w->ld, 1, now, 1, 0, next);
        now = next;
    }
    T(narrow)(w, now, w->z + member * w->d * w->d);
}

/* `products` becomes the gradient with respect to the product of each part. */
static void T(spread)(Work *w, long member, double *room) {
    const long n = w->n, first = member * w->parts;
    const int d = w->d;
    const double *now = w->G + member * d * d;
    if (d != w->ld) {
        memset(room, 0, n * sizeof(double));
        for (int i = 0; i < d; i++) memcpy(room + i * w->ld, now + i * d, d * sizeof(double));
        now = room;
    }
    for (long t = first + w->parts - 1; t > first; t--) {
        double *next = room + (t - first) % 2 * n + n;
        PRODUCT(w->ld, d, w->products + t * n, 1, w->ld, now, 1, 0, next);
        PRODUCT(w->ld, d, now, w->ld, 1, w->outer + t * n, 1, 0, w->products + t * n);
        now = next;
    }
    memcpy(w->products + first * n, now, w->ld * w->ld * sizeof(double));
}

/* Some products of small matrices, which are filled up where they lie otherwise than PRODUCT takes them. */
static void T(multiply)(Work *w, long t, double *room) {
    const Products *p = w->task;
    const int d = w->d, ld = w->ld, whole = ld == d;
    double own[3 * MULTIPLIED * MULTIPLIED], *left = own, *right = own + ld * ld, *product = right + ld * ld;
    (void)room;
    if (!whole) memset(own, 0, 2L * ld * ld * sizeof(double));
    const long stop = (t + 1) * MANY < p->count ? (t + 1) * MANY : p->count;
    for (long k = t * MANY; k < stop; k++) {
        const double *a = p->A.at + k / p->inner * p->A.outer + k % p->inner * p->A.inner;
        const double *b = p->B.at + k / p->inner * p->B.outer + k % p->inner * p->B.inner;
        double *c = p->C + k * d * d;
        if (whole && p->B.row == 1 && p->B.column == d)
            T(transpose)(ld, d, 1, b, right), b = right;
        else if (!whole || p->B.row != d || p->B.column != 1) {
            for (int i = 0; i < d; i++)
                for (int j = 0; j < d; j++) right[i * ld + j] = b[i * p->B.row + j * p->B.column];
            b = right;
        }
        if (whole) {
            PRODUCT(ld, d, a, p->A.row, p->A.column, b, 1, 0, c);
            continue;
        }
        for (int i = 0; i < d; i++)
            for (int j = 0; j < d; j++) left[i * ld + j] = a[i * p->A.row + j * p->A.column];
        PRODUCT(ld, d, left, ld, 1, b, 1, 0, product);
        for (int i = 0; i < d; i++) memcpy(c + i * d, product + i * ld, d * sizeof(double));
    }
}
