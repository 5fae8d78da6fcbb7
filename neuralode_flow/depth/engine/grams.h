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
