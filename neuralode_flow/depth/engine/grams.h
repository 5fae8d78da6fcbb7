/* How matrices look along a few directions. */

/* Adds to `down` and `sums` what rows i ... i + rows of a matrix have to do with it; they lie at X. */
INLINE void T(seen)(int d, int i, int rows, const double *X, const four *v, four *down, four *sums) {
    four along[4] = {{0}};
    if (rows == 4)
        for (int j = 0; j < d; j++)
            UNROLL for (int r = 0; r < 4; r++) {
                const double x = X[(long)r * d + j];
                along[r] += x * v[j], down[j] += x * v[i + r];
            }
    else
        for (int r = 0; r < rows; r++)
            for (int j = 0; j < d; j++) {
                const double x = X[(long)r * d + j];
                along[r] += x * v[j], down[j] += x * v[i + r];
            }
    UNROLL for (int r = 0; r < 4; r++) UNROLL for (int b = 0; b < 4; b++) sums[b] += along[r][b] * along[r];
}

/* (X V)^T (X V) and (X^T V)^T (X^T V) of X (d, d), for four columns V (d, 4), in one reading of X. Where Y is given,
   X is the step from Y to Y + rate X as it has been rounded, and `next` takes Y + rate X. */
static void T(grams)(int d, const double *X, const double *V, const double *Y, double rate, double *next, double *right,
                     double *left) {
    double moved[4 * LARGEST_D];
    four down[LARGEST_D], sums[8] = {{0}};
    memset(down, 0, d * sizeof(four));
    for (int i = 0; i < d; i += 4) {
        const int rows = d - i < 4 ? d - i : 4;
        const long first = (long)i * d;
        if (Y)
            for (int k = 0; k < rows * d; k++) {
                next[first + k] = Y[first + k] + rate * X[first + k];
                moved[k] = next[first + k] - Y[first + k];
            }
        T(seen)(d, i, rows, Y ? moved : X + first, (const four *)V, down, sums);
    }
    for (int j = 0; j < d; j++) UNROLL for (int b = 0; b < 4; b++) sums[4 + b] += down[j][b] * down[j];
    memcpy(right, sums, 4 * sizeof(four));
    memcpy(left, sums + 4, 4 * sizeof(four));
}

/* after = before + right - left, as 4 x 4 matrices, of which the step says whether they are finite */
INLINE void T(add)(Moves *s, const double *before, const double *right, const double *left, double *after) {
    double sum = 0;
    for (int i = 0; i < 16; i++) sum += after[i] = before[i] + (right[i] - left[i]);
    if (!isfinite(sum)) __atomic_store_n(&s->spoiled, 1, __ATOMIC_RELAXED);
}

/* The k-th matrix of `out` becomes the step along it, with what that looks like: every number of it is in there. */
static void T(move)(Work *w, long k, double *room) {
    Moves *s = w->moves;
    const long at = k * w->d * w->d;
    double own[48] = {0}, *seen = s->seen ? s->seen + 32 * k : own;
    (void)room;
    T(grams)(w->d, w->out + at, s->V, w->W + at, s->rate, w->out + at, seen, seen + 16);
    if (s->seen)
        T(add)(s, own, seen, seen + 16, own + 32);
    else
        T(add)(s, s->before + 16 * k, seen, seen + 16, s->after + 16 * k);
}
