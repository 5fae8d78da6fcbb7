/* What an explicit Runge-Kutta step does beside its velocities: n numbers of a state, and K with its slopes (count, n). */

/* sum = a_0 K_0 + a_1 K_1 + ... of a few numbers from q on. */
INLINE void T(combined)(long n, long q, int size, int count, const double *a, const double *K, double *sum) {
    memset(sum, 0, CHUNK * sizeof(double));
    for (int j = 0; j < count; j++)
        if (a[j] != 0)
            for (int r = 0; r < size; r++) sum[r] += a[j] * K[j * n + q + r];
}

/* out = y + h (a_0 K_0 + a_1 K_1 + ...), each number by itself. */
static void T(blend)(long n, int count, const double *a, const double *K, double h, const double *y, double *out) {
    for (long q = 0; q < n; q += CHUNK) {
        const int size = n - q < CHUNK ? (int)(n - q) : CHUNK;
        double sum[CHUNK];
        T(combined)(n, q, size, count, a, K, sum);
        for (int r = 0; r < size; r++) out[q + r] = y[q + r] + h * sum[r];
    }
}

/* The sum of squares of e_0 K_0 + e_1 K_1 + ... over the tolerance atol + rtol max(|y|, |z|) of each number. */
static double T(excess)(long n, int count, const double *e, const double *K, double rtol, double atol, const double *y,
                        const double *z) {
    double total[CHUNK] = {0}, whole = 0;
    for (long q = 0; q < n; q += CHUNK) {
        const int size = n - q < CHUNK ? (int)(n - q) : CHUNK;
        double sum[CHUNK];
        T(combined)(n, q, size, count, e, K, sum);
        for (int r = 0; r < size; r++) {
            const double one = fabs(y[q + r]), other = fabs(z[q + r]), part = sum[r] / (atol + rtol * (one > other ? one : other));
            total[r] += part * part;
        }
    }
    for (int r = 0; r < CHUNK; r++) whole += total[r];
    return whole;
}

/* X becomes -X; whether all of it is finite. */
static int T(turned)(long n, double *X) {
    double sum[CHUNK] = {0}, whole = 0;
    for (long q = 0; q < n; q += CHUNK) {
        const int size = n - q < CHUNK ? (int)(n - q) : CHUNK;
        for (int r = 0; r < size; r++) X[q + r] = -X[q + r], sum[r] += 0 * X[q + r];
    }
    for (int r = 0; r < CHUNK; r++) whole += sum[r];
    return whole == 0;
}

/* G = R^T (R z x^T - y^T) x, the gradient of half the squared residual, for x (rows, d), y (rows, outputs) and R
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
            left[r * s->outputs + o] = sum - s->y[r * s->outputs + o];
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

/* G at z, of half the square of a residual, or of the distance from a target. */
static void T(gradient)(const Squares *s, int d, const double *target, const double *z, double *room, double *G) {
    if (s->x)
        T(residual)(s, d, z, room, G);
    else
        for (int q = 0; q < d * d; q++) G[q] = z[q] - target[q];
}
