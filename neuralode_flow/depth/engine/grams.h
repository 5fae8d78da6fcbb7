/* How matrices look along a few directions. */

/* (X V)^T (X V) and (X^T V)^T (X^T V) of X (d, d), for four columns V (d, 4), in one reading of X. */
static void T(grams)(int d, const double *X, const double *V, double *right, double *left) {
    const four *v = (const four *)V;
    four down[LARGEST_D], sums[8] = {{0}};
    memset(down, 0, d * sizeof(four));
    for (int i = 0; i < d; i += 4) {
        const int rows = d - i < 4 ? d - i : 4;
        four along[4] = {{0}};
        if (rows == 4)
            for (int j = 0; j < d; j++)
                UNROLL for (int r = 0; r < 4; r++) {
                    const double x = X[(long)(i + r) * d + j];
                    along[r] += x * v[j], down[j] += x * v[i + r];
                }
        else
            for (int r = 0; r < rows; r++)
                for (int j = 0; j < d; j++) {
                    const double x = X[(long)(i + r) * d + j];
                    along[r] += x * v[j], down[j] += x * v[i + r];
                }
        UNROLL for (int r = 0; r < 4; r++) UNROLL for (int b = 0; b < 4; b++) sums[b] += along[r][b] * along[r];
    }
    for (int j = 0; j < d; j++) UNROLL for (int b = 0; b < 4; b++) sums[4 + b] += down[j][b] * down[j];
    memcpy(right, sums, 4 * sizeof(four));
    memcpy(left, sums + 4, 4 * sizeof(four));
}
