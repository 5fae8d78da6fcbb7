/* The closed flow of infinite depth on z = Q e^S (flows/polar.py): its velocity, around the gradient at z, and of a loss that
   is half a square the linear systems of implicit formulas. Matrices of the frame have rows of ld numbers, filled up with zeros. */

/* Where the matrices of a frame are in its room of FRAME matrices, and what LAPACK needs, after them. */
typedef struct {
    int d, ld;
    double *Q, *V, *Vt, *QV, *E, *turn, *mean, *one, *two, *three; /* mean: logmean(sigma_a, sigma_b); turn: half of it */
    double *sigma, *ell, *rest;
} T(Frame);

static T(Frame) T(frame_in)(int d, double *room) {
    const int ld = LD(d);
    const long n = (long)ld * ld;
    T(Frame) f = {.d = d, .ld = ld, .Q = room, .V = room + n, .Vt = room + 2 * n, .QV = room + 3 * n, .E = room + 4 * n,
                  .turn = room + 5 * n, .mean = room + 6 * n, .one = room + 7 * n, .two = room + 8 * n, .three = room + 9 * n,
                  .sigma = room + FRAME * n, .ell = room + FRAME * n + ld, .rest = room + FRAME * n + 2 * ld};
    return f;
}

/* C = A B and C = A^T B. */
INLINE void T(times)(int d, int ld, const double *A, const double *B, double *C) { PRODUCT(ld, d, A, ld, 1, B, 1, 0, C); }
INLINE void T(turned_times)(int d, int ld, const double *A, const double *B, double *C) { PRODUCT(ld, d, A, 1, ld, B, 1, 0, C); }

static void T(spread_out)(int d, int ld, const double *from, double *to) {
    for (int i = 0; i < d; i++) memcpy(to + i * ld, from + i * d, d * sizeof(double));
}

/* Q becomes the orthogonal matrix nearest to it, by the series of (Q^T Q)^(-1/2) of order 3. Returns 1 where it is far off. */
static int T(orthogonal)(int d, int ld, double *Q, double *off, double *square, double *swept) {
    for (int sweep = 0; sweep < 6; sweep++) {
        T(turned_times)(d, ld, Q, Q, off);
        double size = 0;
        for (int i = 0; i < d; i++) {
            off[i * ld + i] -= 1;
            for (int j = 0; j < d; j++) size += off[i * ld + j] * off[i * ld + j];
        }
        size = sqrt(size);
        if (!(size <= 0.5)) return 1;
        T(times)(d, ld, off, off, square);
        for (int i = 0; i < d; i++)
            for (int j = 0; j < d; j++) off[i * ld + j] = 0.375 * square[i * ld + j] - off[i * ld + j] / 2;
        T(times)(d, ld, Q, off, swept);
        for (int i = 0; i < d; i++)
            for (int j = 0; j < d; j++) Q[i * ld + j] += swept[i * ld + j];
        if (size * size * size <= DBL_EPSILON) break;
    }
    return 0;
}

/* Two rows become c x - s y and s x + c y. */
INLINE void T(rotate)(int d, double c, double s, double *x, double *y) {
    for (int k = 0; k < d; k++) {
        const double one = c * x[k] - s * y[k], other = s * x[k] + c * y[k];
        x[k] = one, y[k] = other;
    }
}

/* A symmetric S (d, d), with rows of d: eigenvalues ell, which rise, and eigenvectors, the rows of Vt with rows of ld; by Jacobi's
   rotations, those of d/2 pairs side by side. Returns 1 where they do not come to an end. */
static int T(rotated)(int d, double *S, double *ell, int ld, double *Vt) {
    const int n = d + d % 2;
    double square = 0;
    for (int q = 0; q < d * d; q++) square += S[q] * S[q];
    if (!(square <= 1e300)) return 1;
    for (int i = 0; i < d; i++) Vt[i * ld + i] = 1;
    for (int sweep = 0;; sweep++) {
        double off = 0;
        for (int p = 0; p < d; p++)
            for (int q = 0; q < p; q++) off += S[p * d + q] * S[p * d + q];
        if (off <= 0.01 * DBL_EPSILON * DBL_EPSILON * square) break;
        if (sweep == 20) return 1;
        for (int round = 0; round < n - 1; round++) {
            int pairs[SMALL / 2][2], count = 0;
            double c[SMALL / 2], s[SMALL / 2];
            for (int i = 0; i < n / 2; i++) {
                int p, q;
                opposed(n, round, i, &p, &q);
                if (p < d && q < d) pairs[count][0] = p < q ? p : q, pairs[count++][1] = p < q ? q : p;
            }
            for (int i = 0; i < count; i++) {
                const int p = pairs[i][0], q = pairs[i][1];
                const double a = S[p * d + q], gap = S[q * d + q] - S[p * d + p], size = fabs(gap) + sqrt(gap * gap + 4 * a * a);
                const double t = size == 0 ? 0 : (gap < 0 ? -2 : 2) * a / size;
                c[i] = 1 / sqrt(1 + t * t), s[i] = t * c[i];
            }
            for (int i = 0; i < count; i++) {
                const int p = pairs[i][0], q = pairs[i][1];
                T(rotate)(d, c[i], s[i], S + p * d, S + q * d);
                T(rotate)(d, c[i], s[i], Vt + p * ld, Vt + q * ld);
            }
            for (int i = 0; i < count; i++)
                for (int k = 0; k < d; k++) {
                    const int p = k * d + pairs[i][0], q = k * d + pairs[i][1];
                    const double one = c[i] * S[p] - s[i] * S[q], other = s[i] * S[p] + c[i] * S[q];
                    S[p] = one, S[q] = other;
                }
            for (int i = 0; i < count; i++) S[pairs[i][0] * d + pairs[i][1]] = S[pairs[i][1] * d + pairs[i][0]] = 0;
        }
    }
    for (int i = 0; i < d; i++) {
        int least = i;
        ell[i] = S[i * d + i];
        for (int j = i + 1; j < d; j++)
            if (S[j * d + j] < ell[i]) ell[i] = S[j * d + j], least = j;
        if (least == i) continue;
        S[least * d + least] = S[i * d + i];
        for (int k = 0; k < d; k++) {
            const double other = Vt[i * ld + k];
            Vt[i * ld + k] = Vt[least * ld + k], Vt[least * ld + k] = other;
        }
    }
    return 0;
}

/* The same of S and Vt in one, by LAPACK where it is as fast. */
static int T(eigen)(const T(Frame) *f) {
    const int d = f->d;
    double S[SMALL * SMALL];
    if (d > SMALL) {
        int info, size = 1 + 6 * d + 2 * d * d, whole = 3 + 5 * d;
        lapack.syevd("V", "L", &d, f->Vt, &f->ld, f->ell, f->rest, &size, (int *)(f->rest + size), &whole, &info);
        return info;
    }
    for (int i = 0; i < d; i++)
        for (int j = 0; j < d; j++) S[i * d + j] = f->Vt[i * f->ld + j], f->Vt[i * f->ld + j] = 0;
    return T(rotated)(d, S, f->ell, f->ld, f->Vt);
}

/* All of a frame but E, from Q and S (d, d) each. Returns 1 where it cannot be had. */
static int T(framed)(const T(Frame) *f, const double *state) {
    const int d = f->d, ld = f->ld, n = d * d;
    const double *S = state + n;
    double sum = 0;
    for (int q = 0; q < 2 * n; q++) sum += 0 * state[q];
    if (sum != 0) return 1;
    memset(f->Q, 0, FRAME * (long)ld * ld * sizeof(double));
    T(spread_out)(d, ld, state, f->Q);
    for (int i = 0; i < d; i++)
        for (int j = 0; j < d; j++) f->Vt[i * ld + j] = (S[i * d + j] + S[j * d + i]) / 2;
    if (T(eigen)(f) || T(orthogonal)(d, ld, f->Q, f->one, f->two, f->three)) return 1;
    for (int i = 0; i < d; i++) {
        /* A trial step may go anywhere: its numbers stay finite. */
        if (f->ell[i] > LOG_LARGEST) f->ell[i] = LOG_LARGEST;
        f->sigma[i] = exp(f->ell[i]);
        for (int j = 0; j < d; j++) f->V[j * ld + i] = f->Vt[i * ld + j];
    }
    T(times)(d, ld, f->Q, f->V, f->QV);
    for (int a = 0; a < d; a++)
        for (int b = 0; b <= a; b++) {
            const double r = f->ell[a] - f->ell[b], mean = f->sigma[a] * (r > 0 ? -expm1(-r) / r : 1); /* they rise */
            f->mean[a * ld + b] = f->mean[b * ld + a] = mean;
            f->turn[a * ld + b] = f->turn[b * ld + a] = mean / 2;
        }
    return 0;
}

/* out = s + c of QV (turn o (X - X^T)) V^T, and of V (Y + Y^T) V^T with Y = diag(sigma) X / 2. */
static void T(moved)(const T(Frame) *f, const double *X, double c, const double *s, double *out) {
    const int d = f->d, ld = f->ld, n = d * d;
    for (int half = 0; half < 2; half++) {
        for (int a = 0; a < d; a++)
            for (int b = 0; b < d; b++) {
                const double x = X[a * ld + b], y = X[b * ld + a];
                f->one[a * ld + b] = half ? (f->sigma[a] * x + f->sigma[b] * y) / 2 : f->turn[a * ld + b] * (x - y);
            }
        T(times)(d, ld, half ? f->V : f->QV, f->one, f->two);
        T(times)(d, ld, f->two, f->Vt, f->three);
        for (int i = 0; i < d; i++)
            for (int j = 0; j < d; j++) {
                const long q = half * n + i * d + j;
                out[q] = (s ? s[q] : 0) + c * f->three[i * ld + j];
            }
    }
}

/* The frame of a state (2, d, d) in its room, and z (d, d). Returns 1 where they cannot be had. */
static int T(polar_forward)(int d, const double *state, double *room, double *z) {
    const T(Frame) f = T(frame_in)(d, room);
    const int ld = f.ld;
    if (T(framed)(&f, state)) return 1;
    for (int i = 0; i < d; i++)
        for (int j = 0; j < d; j++) f.one[i * ld + j] = f.QV[i * ld + j] * f.sigma[j];
    T(times)(d, ld, f.one, f.Vt, f.two);
    for (int i = 0; i < d; i++) memcpy(z + i * d, f.two + i * ld, d * sizeof(double));
    return 0;
}

/* Minus the velocity there, from the gradient G (d, d) at z. */
static void T(polar_backward)(int d, const double *G, double *room, double *out) {
    const T(Frame) f = T(frame_in)(d, room);
    T(spread_out)(d, f.ld, G, f.three);
    T(turned_times)(d, f.ld, f.QV, f.three, f.one);
    T(times)(d, f.ld, f.one, f.V, f.E);
    T(moved)(&f, f.E, 1, 0, out);
}

/* The velocity of a state, of a loss that is a square. Returns 1 where it cannot be had. */
static int T(polar)(const Squares *loss, int d, const double *state, double *room, double *out) {
    double *z = T(frame_in)(d, room).rest, *G = z + d * d;
    if (T(polar_forward)(d, state, room, z)) return 1;
    T(downhill)(loss, d, z, G + d * d, G);
    T(polar_backward)(d, G, room, out);
    return !T(finite)(2L * d * d, out);
}

/* What (1 + gamma BHA)^-1 is made of (flows/polar.py): a frame, and H = left (x) right in it, (ld, ld) each. */
typedef struct {
    T(Frame) f;
    double *left, *right, *M, *rhs; /* M (d^2, d^2) by columns, factored; rhs (d, d) */
    int *pivots;
} T(System);

static T(System) T(system_in)(const Squares *loss, int d, double *room) {
    const long n = (long)LD(d) * LD(d), square = (long)d * d;
    double *after = room + frame_room(loss, d);
    return (T(System)){T(frame_in)(d, room), after, after + n, after + 2 * n + square, after + 2 * n, (int *)(after + 2 * n + square + square * square)};
}

/* M = F^T F with F = A X, for A (rows, d) and X with rows of ld. */
static void T(gram)(int rows, int d, int ld, const double *A, const double *X, double *M) {
    memset(M, 0, (long)ld * ld * sizeof(double));
    for (int r = 0; r < rows; r++) {
        double row[64] = {0};
        for (int j = 0; j < d; j++)
            for (int i = 0; i < d; i++) row[i] += A[r * d + j] * X[j * ld + i];
        for (int i = 0; i < d; i++)
            for (int j = 0; j < d; j++) M[i * ld + j] += row[i] * row[j];
    }
}

static int T(linearise)(const Squares *loss, const T(System) *s, const double *state) {
    const int d = s->f.d, ld = s->f.ld;
    if (T(framed)(&s->f, state)) return 1;
    memset(s->left, 0, 2 * (long)ld * ld * sizeof(double));
    for (int i = 0; i < d; i++) s->left[i * ld + i] = s->right[i * ld + i] = 1;
    if (loss->R) T(gram)(loss->outputs, d, ld, loss->R, s->f.QV, s->left);
    if (loss->x) T(gram)(loss->rows, d, ld, loss->x, s->f.V, s->right);
    for (int q = 0; loss->weight && q < ld * ld; q++) s->left[q] *= *loss->weight;
    return 0;
}

/* Factors 1 + gamma HAB. Returns 1 where that is singular. */
static int T(factorise)(const T(System) *s, double gamma) {
    const int d = s->f.d, ld = s->f.ld, n = d * d;
    for (int c = 0; c < d; c++)
        for (int e = 0; e < d; e++) {
            double *column = s->M + (long)(c * d + e) * n;
            const double w = gamma * s->f.turn[c * ld + e] * (s->f.sigma[c] + s->f.sigma[e]);
            for (int a = 0; a < d; a++)
                for (int b = 0; b < d; b++) column[a * d + b] = w * s->left[a * ld + c] * s->right[e * ld + b];
            column[c * d + e] += 1;
        }
    int info;
    lapack.getrf(&n, &n, s->M, &n, s->pivots, &info);
    return info;
}

/* x = (1 + gamma BHA)^-1 r. */
static int T(solve)(const T(System) *s, double gamma, const double *r, double *x) {
    const T(Frame) *f = &s->f;
    const int d = f->d, ld = f->ld, n = d * d, one = 1;
    double *dQ = f->E, *dS = f->three;
    T(spread_out)(d, ld, r, f->one);
    T(turned_times)(d, ld, f->QV, f->one, f->two);
    T(times)(d, ld, f->two, f->V, dQ);
    T(spread_out)(d, ld, r + n, f->one);
    T(turned_times)(d, ld, f->V, f->one, f->two);
    T(times)(d, ld, f->two, f->V, dS);
    for (int a = 0; a < d; a++)
        for (int b = 0; b < d; b++) {
            const int q = a * ld + b, p = b * ld + a;
            f->one[q] = (dQ[q] - dQ[p]) * (f->sigma[b] / 2) + f->mean[q] * ((dS[q] + dS[p]) / 2);
        }
    T(times)(d, ld, s->left, f->one, f->two);
    T(times)(d, ld, f->two, s->right, f->E);
    for (int a = 0; a < d; a++) memcpy(s->rhs + a * d, f->E + a * ld, d * sizeof(double));
    int info;
    lapack.getrs("N", &n, &one, s->M, &n, s->pivots, s->rhs, &n, &info);
    T(spread_out)(d, ld, s->rhs, f->E);
    T(moved)(f, f->E, -gamma, r, x);
    return info;
}
