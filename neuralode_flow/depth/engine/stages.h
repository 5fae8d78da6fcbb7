/* What an explicit Runge-Kutta step does beside its velocities: n numbers of a state, and K with its slopes (count, n). */

typedef double T(wide) __attribute__((vector_size(BYTES), aligned(8), may_alias));
#define WIDE (long)(BYTES / sizeof(double))
#define BLOCK (4 * WIDE)

/* sum = a_0 K_0 + a_1 K_1 + ... of a block of numbers from q on, or of as many as are left. */
INLINE void T(combined)(long n, long q, int count, const double *a, const double *K, double *sum) {
    if (n - q >= BLOCK) {
        T(wide) all[4] = {{0}};
        for (int j = 0; j < count; j++)
            if (a[j] != 0) UNROLL for (int c = 0; c < 4; c++) all[c] += a[j] * *(const T(wide) *)(K + j * n + q + c * WIDE);
        UNROLL for (int c = 0; c < 4; c++) *(T(wide) *)(sum + c * WIDE) = all[c];
        return;
    }
    for (int r = 0; r < n - q; r++) sum[r] = 0;
    for (int j = 0; j < count; j++)
        if (a[j] != 0)
            for (int r = 0; r < n - q; r++) sum[r] += a[j] * K[j * n + q + r];
}
#define EACH(r) for (int r = 0, size = (int)(n - q < BLOCK ? n - q : BLOCK); r < size; r++)

/* out = y + h (a_0 K_0 + a_1 K_1 + ...), each number by itself. */
static void T(blend)(long n, int count, const double *a, const double *K, double h, const double *y, double *out) {
    for (long q = 0; q < n; q += BLOCK) {
        double sum[BLOCK];
        T(combined)(n, q, count, a, K, sum);
        EACH(r) out[q + r] = y[q + r] + h * sum[r];
    }
}

/* The sum of squares of e_0 K_0 + e_1 K_1 + ... over the tolerance atol + rtol max(|y|, |z|) of each number. */
static double T(excess)(long n, int count, const double *e, const double *K, double rtol, double atol, const double *y,
                        const double *z) {
    double total[BLOCK] = {0}, whole = 0;
    for (long q = 0; q < n; q += BLOCK) {
        double sum[BLOCK];
        T(combined)(n, q, count, e, K, sum);
        EACH(r) {
            const double one = fabs(y[q + r]), other = fabs(z[q + r]), part = sum[r] / (atol + rtol * (one > other ? one : other));
            total[r] += part * part;
        }
    }
    for (int r = 0; r < BLOCK; r++) whole += total[r];
    return whole;
}

/* Whether all numbers are finite. */
static int T(finite)(long n, const double *X) {
    T(wide) sum[4] = {{0}};
    double whole = 0;
    long q = 0;
    for (; q <= n - BLOCK; q += BLOCK)
        UNROLL for (int c = 0; c < 4; c++) sum[c] += 0.0 * *(const T(wide) *)(X + q + c * WIDE);
    for (; q < n; q++) whole += 0 * X[q];
    sum[0] += sum[1] + sum[2] + sum[3];
    for (int r = 0; r < WIDE; r++) whole += sum[0][r];
    return whole == 0;
}
#undef WIDE
#undef BLOCK
#undef EACH

/* G = R^T (y^T - R z x^T) x, minus the gradient of half the squared residual, for x (rows, d), y (rows, outputs) and R
   (outputs, d), the identity where it is 0. */
static void T(residual)(const Squares *s, int d, const double *z, double *room, double *G) {
    double *image = room, *left = room + s->rows * d, *back = left + s->rows * s->outputs;
    for (int r = 0; r < s->rows; r++) {
        for (int i = 0; i < d; i++) {
            double sum = 0;
            for (int j = 0; j < d; j++) sum += s->x[r * d + j] * z[i * d + j];
            image[r * d + i] = sum;
        }
        for (int o = 0; o < s->outputs; o++) {
            double sum = s->R ? 0 : image[r * d + o];
            for (int i = 0; s->R && i < d; i++) sum += s->R[o * d + i] * image[r * d + i];
            left[r * s->outputs + o] = s->y[r * s->outputs + o] - sum;
        }
        for (int i = 0; i < d; i++) {
            double sum = s->R ? 0 : left[r * s->outputs + i];
            for (int o = 0; s->R && o < s->outputs; o++) sum += s->R[o * d + i] * left[r * s->outputs + o];
            back[r * d + i] = sum;
        }
    }
    memset(G, 0, d * d * sizeof(double));
    for (int r = 0; r < s->rows; r++)
        for (int i = 0; i < d; i++)
            for (int j = 0; j < d; j++) G[i * d + j] += back[r * d + i] * s->x[r * d + j];
}

/* G at z: minus the gradient of half the square of a residual, or of the distance from a target. What is linear in it is downhill. */
static void T(downhill)(const Squares *s, int d, const double *z, double *room, double *G) {
    if (s->x)
        T(residual)(s, d, z, room, G);
    else
        for (int q = 0; q < d * d; q++) G[q] = s->y[q] - z[q];
    for (int q = 0; s->weight && q < d * d; q++) G[q] *= *s->weight;
}
