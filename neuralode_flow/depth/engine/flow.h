/* A flow on a grid: the panels from their middles, their products, and the gradient at the nodes. */

/* Some rows, n numbers from `from` on, of one half of one panel: X - I at the nodes, ordered from the middle, and at the
   right and the left end. Bf is B in float. */
static int T(strip)(const Work *w, long t, int rows, long from, long n, const double *B, const float *Bf, double *room) {
    const int m = w->m, d = w->d, ld = w->ld, pairs = w->pairs, odd = w->odd;
    const long next = w->n;
    const double limit = LARGEST * LARGEST / 2;
    double *X = w->X + t * m * next + from, *ends = w->ends + t * 2 * next + from, *F = room, *tmp = F + 2 * pairs * n;
    if (!MIXED(w)) {
        if (CAT(sweepsdouble, TARGET)(w, rows, n, w->c, B, next, B + from, next, TOLERANCE, limit, F, tmp) < 0) return 0;
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
        INTEGRAL(pairs, odd, n, w->c + p * 2 * pairs, F, X + (2 * p - odd) * next, X + (2 * p - odd + 1) * next);
    INTEGRAL(pairs, odd, n, w->c + pairs * 2 * pairs, F, ends, ends + next);
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
        const double *from = w->W + (t / 2 * m + node(m, k)) * d * d;
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
    const double *uT_end = w->ends + t * 4 * n, *v_end = uT_end + 2 * n, *v_start = uT_end + 3 * n;
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
    PRODUCT(ld, d, w->products + t * n, ld, 1, minus + n, 1, 0, next);
    PRODUCT(ld, d, minus + 2 * n, 1, ld, next, 1, 0, start);
    memcpy(inner, start, n * sizeof(double));
    for (int k = 0; k < w->terms[t]; k++) {
        PRODUCT(ld, d, minus, 1, ld, inner, 1, start, next);
        double *swap = inner;
        inner = next, next = swap;
    }
    for (int k = m * cut / w->cuts; k < m * (cut + 1) / w->cuts; k++) {
        double *out = w->out + (t * m + node(m, k)) * d * d, *here = d == ld ? out : next;
        PRODUCT(ld, d, v + k * n, 1, ld, inner, 1, 0, left);
        PRODUCT(ld, d, left, ld, 1, uT + k * n, 1, 0, here);
        T(narrow)(w, here, out);
        if (w->moves) T(move)(w, t * m + node(m, k), room);
    }
}
