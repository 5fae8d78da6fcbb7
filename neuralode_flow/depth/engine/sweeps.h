/* The collocation equations of one strip of rows, in numbers of type REAL: integrals along the nodes, and sweeps. */

/* J f at two nodes that lie opposite each other: the even part of f gives the odd part of it and vice versa, which is
   half the work. F holds f_i + f_i' and then f_i - f_i' of the pairs, from the middle outwards, in pieces of CHUNK
   numbers, so that it is read from one end to the other; c has their weights. */
static void R(integral)(int pairs, int odd, long n, const REAL *c, const REAL *F, REAL *right, REAL *left) {
    enum { WIDE = BYTES / sizeof(REAL), MOST = CHUNK / WIDE, GROUP = MOST < 4 ? MOST : 4 };
    for (long q = 0; q < n; q += GROUP * WIDE) {
        const REAL *at = F + q / CHUNK * CHUNK * 2 * pairs + q % CHUNK;
        R(full) a[GROUP] = {{0}}, b[GROUP] = {{0}};
        for (int p = 0; p < pairs; p++)
            UNROLL for (int g = 0; g < GROUP; g++) a[g] += c[p] * *(const R(full) *)(at + p * CHUNK + g * WIDE);
        for (int p = pairs + odd; p < 2 * pairs; p++)
            UNROLL for (int g = 0; g < GROUP; g++) b[g] += c[p] * *(const R(full) *)(at + p * CHUNK + g * WIDE);
        UNROLL for (int g = 0; g < GROUP; g++) {
            *(R(full) *)(right + q + g * WIDE) = b[g] + a[g];
            *(R(full) *)(left + q + g * WIDE) = b[g] - a[g];
        }
    }
}

/* Puts f of the pair p into F: the one node in the middle where there is no left one. */
INLINE void R(put)(int pairs, int p, long n, const REAL *right, const REAL *left, REAL *F) {
    F += p * CHUNK;
    for (long q = 0; q < n; q += CHUNK, F += 2 * pairs * CHUNK)
        for (int r = 0; r < CHUNK; r++) {
            F[r] = left ? right[q + r] + left[q + r] : right[q + r];
            F[pairs * CHUNK + r] = left ? right[q + r] - left[q + r] : 0;
        }
}

/* The largest |x - y|, or |x|. Positive numbers are ordered like the integers of their bits, NaN above all. */
static double R(largest)(long n, const REAL *x, const REAL *y) {
    typedef BITS bits __attribute__((vector_size(BYTES)));
    enum { WIDE = BYTES / sizeof(REAL) };
    bits most = {0};
    for (long q = 0; q < n; q += WIDE) {
        R(full) gap = *(const R(full) *)(x + q);
        if (y) gap -= *(const R(full) *)(y + q);
        bits size = (bits)gap & (BITS)(~0ull >> (65 - 8 * sizeof(BITS))), more = size > most;
        most = (size & more) | (most & ~more);
    }
    union { BITS i; REAL x; } result = {0};
    for (int g = 0; g < WIDE; g++)
        if (most[g] > result.i) result.i = most[g];
    return result.x;
}

/* f = S + (J f) B by Gauss-Seidel sweeps over the pairs of nodes, from the middle outwards, for a strip of rows, `n`
   numbers of each matrix. B and S are ordered alike: (the node in the middle,) then the right and the left one of each
   pair, `bn` and `sn` numbers apart. The change of J f at the outermost pair is its error a sweep ago, and each sweep
   gains what the one before did or more. Ends when what is left of the error is below `tolerance` beside I + J f; the
   last f is ahead of it by about as much as a sweep in the order of Jacobi gains. Returns the largest entry of J f there,
   or -1 where it fails, as it does for a first change above `limit`. room: 6 n. */
static double R(sweeps)(const Work *w, int rows, long n, const REAL *c, const REAL *B, long bn, const REAL *S, long sn,
                        double tolerance, double limit, REAL *F, REAL *room) {
    const int ld = w->ld, pairs = w->pairs, odd = w->odd;
    const double round_off = sizeof(REAL) == 4 ? 2.4e-7 : 4.4e-16;
    REAL *f = room, *now = room + 2 * n, *old = room + 4 * n;
    memset(room, 0, 6 * n * sizeof(REAL));
    if (odd) R(put)(pairs, 0, n, S, 0, F);
    for (int p = odd; p < pairs; p++) R(put)(pairs, p, n, S + (2 * p - odd) * sn, S + (2 * p - odd + 1) * sn, F);
    if (pairs == odd) return 0;
    R(integral)(pairs, odd, n, c + (pairs - 1) * 2 * pairs, F, old, old + n);
    double before = 0;
    for (int sweep = 1; sweep <= MAX_SWEEPS; sweep++) {
        for (int p = odd; p < pairs; p++) {
            R(integral)(pairs, odd, n, c + p * 2 * pairs, F, now, now + n);
            for (int side = 0; side < 2; side++) {
                const int k = 2 * p - odd + side;
                R(product)(rows, ld, w->d, now + side * n, ld, 1, B + k * bn, 1, S + k * sn, f + side * n);
            }
            R(put)(pairs, p, n, f, f + n, F);
        }
        const double change = R(largest)(2 * n, now, old), size = R(largest)(2 * n, now, 0);
        const int end = ended(sweep, change, before, size, tolerance, limit, round_off);
        if (end) return end > 0 ? size : -1;
        before = change;
        REAL *swap = now;
        now = old, old = swap;
    }
    return -1;
}
