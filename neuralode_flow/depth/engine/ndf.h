/* One step of numerical differentiation formulas, as time/methods/ndf.py takes it, for states Q and S of polar.h. */

/* A norm in tolerances: the root mean square over all entries. */
INLINE double T(size_of)(const Ndf *s, const double *v) {
    double total[CHUNK] = {0}, whole = 0;
    for (long q = 0; q < s->n; q += CHUNK)
        for (int r = 0; r < (s->n - q < CHUNK ? s->n - q : CHUNK); r++) {
            const double part = v[q + r] * s->weight[q + r];
            total[r] += part * part;
        }
    for (int r = 0; r < CHUNK; r++) whole += total[r];
    return sqrt(whole);
}

/* Differences of the same polynomial at a distance `factor` times as large. */
static void T(resize)(Ndf *s, double factor) {
    const int q = s->order;
    double U[2][ORDERS + 1][ORDERS + 1], M[ORDERS + 1][ORDERS + 1];
    for (int k = 0; k < 2; k++)
        for (int j = 0; j <= q; j++) {
            U[k][0][j] = 1;
            for (int i = 1; i <= q; i++) U[k][i][j] = j ? U[k][i - 1][j] * (i - 1 - (k ? 1 : factor) * j) / i : 0;
        }
    for (int i = 0; i <= q; i++)
        for (int j = 0; j <= q; j++) {
            M[i][j] = 0;
            for (int k = 0; k <= q; k++) M[i][j] += U[0][i][k] * U[1][k][j];
        }
    for (long p = 0; p < s->n; p++) {
        double before[ORDERS + 1];
        for (int i = 0; i <= q; i++) before[i] = s->D[i * s->n + p];
        for (int j = 0; j <= q; j++) {
            double sum = 0;
            for (int i = 0; i <= q; i++) sum += M[i][j] * before[i];
            s->D[j * s->n + p] = sum;
        }
    }
    s->size *= factor, s->equal = 0, s->factored = 0;
}

/* The change y with gamma v(predicted + y) = history + y. SLOW where the iteration converges too slowly. */
static int T(newton)(Ndf *s, const T(System) *system, double gamma, double *room) {
    const long n = s->n;
    double *at = room, *slope = at + n, *update = slope + n, *rest = update + n, before = 0;
    memset(s->change, 0, n * sizeof(double));
    for (long q = 0; q < n; q++) at[q] = s->round_off * fabs(s->predicted[q]);
    const double floor = T(size_of)(s, at);
    for (int sweep = 0; sweep < s->sweeps; sweep++) {
        for (long q = 0; q < n; q++) at[q] = s->predicted[q] + s->change[q];
        if (s->evaluations++ >= s->most || T(polar)(&s->loss, s->d, at, rest, slope)) return BAIL;
        for (long q = 0; q < n; q++) slope[q] = gamma * slope[q] - s->history[q] - s->change[q];
        if (T(solve)(system, gamma, slope, update)) return BAIL;
        const double size = T(size_of)(s, update);
        if (!isfinite(size)) return SLOW;
        if (before && (size > floor || s->contraction < 0)) s->contraction = size / before;
        if (size <= floor) {
            for (long q = 0; q < n; q++) s->change[q] += update[q];
            return DONE;
        }
        const double rate = s->contraction; /* below 0 where it is not known */
        if (rate >= 0 && !(rate < 1 && pow(rate, s->sweeps - 1 - sweep) / (1 - rate) * size < s->newton)) return SLOW;
        for (long q = 0; q < n; q++) s->change[q] += update[q];
        if (rate >= 0 && rate / (1 - rate) * size < s->newton) return DONE;
        before = size;
    }
    return SLOW;
}

/* The solution less its prediction, with systems from here where those from before do not do. */
static int T(corrected)(Ndf *s, const T(System) *system, double *room) {
    const int q = s->order;
    const long n = s->n;
    const double gamma = s->size / s->alpha[q];
    for (long p = 0; p < n; p++) {
        double sum = s->D[p], past = 0;
        for (int k = 1; k <= q; k++) sum += s->D[k * n + p], past += s->gamma[k] * s->D[k * n + p];
        s->predicted[p] = sum, s->history[p] = past / s->alpha[q];
        s->weight[p] = 1 / (s->local * (s->atol + s->rtol * fabs(sum)) * sqrt((double)n));
    }
    for (int fresh = 0;;) {
        if (!s->linear) {
            fresh = 1, s->factored = 0;
            if (s->evaluations++ >= s->most || T(linearise)(&s->loss, system, s->predicted)) return BAIL;
            s->products++, s->linear = 1;
        }
        if (!s->factored) {
            if (T(factorise)(system, gamma)) return BAIL;
            s->factored = 1, s->contraction = -1;
        }
        const int found = T(newton)(s, system, gamma, room);
        if (found != SLOW || fresh) return found;
        s->linear = 0;
    }
}

static double T(spacing)(double t) { return nextafter(fabs(t), INFINITY) - fabs(t); }

/* Takes the order, of the present one and its neighbours, that allows the longest step. */
static void T(choose)(Ndf *s) {
    double most = -1, chosen = 0;
    int best = s->order;
    for (int order = s->order > 1 ? s->order - 1 : 1; order <= ORDERS && order <= s->order + 1; order++) {
        const double error = s->errors[order] * T(size_of)(s, s->D + (order + 1) * s->n);
        chosen = s->safety * pow(error > 1e-30 ? error : 1e-30, -1.0 / (order + 1));
        if (chosen > most) most = chosen, best = order;
    }
    if (most > s->worth || (most < 1 && best != s->order)) {
        s->order = best;
        T(resize)(s, most < s->longer ? most : s->longer);
    }
}

/* One accepted step. Returns 0 where there is none, and then the differences mean nothing. */
static int T(ndf_step)(Ndf *s, double *room) {
    const T(System) system = T(system_in)(&s->loss, s->d, s->kept);
    const long n = s->n;
    for (;;) {
        if (s->t + s->size > s->end) T(resize)(s, (s->end - s->t) / s->size);
        if (s->size <= 8 * T(spacing)(s->t)) return 0;
        const int found = T(corrected)(s, &system, room);
        if (found == BAIL) return 0;
        if (found == SLOW) {
            T(resize)(s, 0.5);
            continue;
        }
        const double error = s->errors[s->order] * T(size_of)(s, s->change);
        if (error <= 1) break;
        const double factor = s->safety * pow(error, -1.0 / (s->order + 1));
        T(resize)(s, factor > s->shorter ? factor : s->shorter); /* NaN: the shortest */
    }
    const int q = s->order;
    const double t = s->t + s->size;
    s->t = s->end - t <= 8 * T(spacing)(s->end) ? s->end : t;
    for (long p = 0; p < n; p++) {
        s->D[(q + 2) * n + p] = s->change[p] - s->D[(q + 1) * n + p];
        s->D[(q + 1) * n + p] = s->change[p];
        for (int k = q; k >= 0; k--) s->D[k * n + p] += s->D[(k + 1) * n + p];
    }
    memcpy(s->polynomial, s->D, (q + 1) * n * sizeof(double));
    s->degree = q, s->length = s->size;
    if (++s->equal > q) T(choose)(s);
    return 1;
}
