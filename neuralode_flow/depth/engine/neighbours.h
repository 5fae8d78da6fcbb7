/* The law between neighbouring layers of at most 8 x 8. */

/* S = X^T X of rows of ld numbers */
INLINE void T(with_itself)(int ld, const double *X, double *S) {
    UNROLL for (int i = 0; i < ld; i++) UNROLL for (int j = 0; j < ld; j += 4) {
        four sum = X[i] * *(const four *)(X + j);
        UNROLL for (int k = 1; k < ld; k++) sum += X[k * ld + i] * *(const four *)(X + k * ld + j);
        *(four *)(S + i * ld + j) = sum;
    }
}

/* What the law takes of a layer W, of ld^2 numbers each. */
INLINE void T(sides)(int d, int ld, const double *W, double *side) {
    const int all = ld * ld;
    double *X = side + ITSELF * all;
    for (int i = 0; i < d; i++) memcpy(X + i * ld, W + i * d, d * sizeof(double)); /* the rest is 0 from the start */
    T(transpose)(ld, ld, 1, X, side + TURNED * all);
    T(with_itself)(ld, X, side + INWARDS * all);
    T(with_itself)(ld, side + TURNED * all, side + OUTWARDS * all);
}

/* Of some pairs of neighbours, in groups of MANY. */
INLINE void T(pairs)(const Neighbours *p, int d, int ld, long t) {
    const long all = ld * ld, stop = (t + 1) * MANY < p->count ? (t + 1) * MANY : p->count;
    double room[2][SIDES * BESIDE * BESIDE], law[BESIDE * BESIDE], *before = room[0], *after = room[1];
    memset(room[0], 0, all * sizeof(double)), memset(room[1], 0, all * sizeof(double));
    for (long k = t * MANY; k < stop; k++) {
        const double *W = p->W + (k / (p->L - 1) + k) * d * d; /* a member has a layer more than pairs */
        if (k == t * MANY || k % (p->L - 1) == 0) T(sides)(d, ld, W, before);
        T(sides)(d, ld, W + d * d, after);
        for (long q = 0; q < all; q += 4) {
#define PART(of, which) (*(const four *)(of + which * all + q))
            four own = ((PART(after, ITSELF) - PART(before, ITSELF)) + (PART(after, TURNED) - PART(before, TURNED))) * (double)p->L;
            if (p->mean)
                own += ((PART(after, INWARDS) - PART(after, OUTWARDS)) + (PART(before, INWARDS) - PART(before, OUTWARDS))) / 2;
            else
                own = own + PART(after, INWARDS) - PART(before, OUTWARDS);
            *(four *)(law + q) = own;
#undef PART
        }
        for (int i = 0; i < d; i++) memcpy(p->law + k * d * d + i * d, law + i * ld, d * sizeof(double));
        double *next = before;
        before = after, after = next;
    }
}
static void T(neighbours)(Work *w, long t, double *room) {
    (void)room;
    if (w->d == 4)
        T(pairs)(w->task, 4, 4, t);
    else if (w->d < 4)
        T(pairs)(w->task, w->d, 4, t);
    else
        T(pairs)(w->task, w->d, 8, t);
}
