/* The layer rules and their adjoints, for matrices that lie in one LAYOUT: each by itself, or four or eight side by side. A layout
   says how they are multiplied, what a I + b x is, how large they are, and what the inverse is that Cayley layers need. */

/* U = exp(B), and D = its derivative at B in the direction M; where U or M is 0 it is left out. Taylor's series to
   round-off by Horner's rule in B^2, q_j = (2j + 1) I + B + B^2 q_j+1 / ((2j + 2)(2j + 3)), of B halved until it is
   small, and then squares. Returns 0 where B is too large. room: 7 matrices. */
static int V(exponential)(const Work *w, const double *B, const double *M, double *U, double *D, double *room) {
    /* Up to which norm the next term of the derivative is below round-off, by the number of steps. */
    static const double reach[] = {0, 5.5e-6, 1.2e-3, 1.4e-2, 6e-2, 0.15, 0.3, 0.5};
    enum { MOST = sizeof reach / sizeof *reach - 1 };
    const long n = V(size)(w);
    double *square = room + n, *moved = room + 2 * n, *q = room + 3 * n, *next = room + 4 * n, *one = room + 5 * n,
           *other = room + 6 * n, norm = V(norm)(w, B), factor = 1;
    const double *p = M;
    int squares = 0, steps = 1;
    if (!(norm <= FAR)) return 0;
    for (; norm > reach[MOST]; norm /= 2, factor /= 2) squares++;
    while (norm > reach[steps]) steps++;
    if (squares) {
        V(affine)(w, 0, factor, B, room);
        B = room;
    }
#define SWAP(x, y) do { double *swap = x; x = y, y = swap; } while (0)
    V(times)(w, B, B, 0, square);
    V(affine)(w, 2 * steps + 1, 1, B, q);
    if (M) {
        V(times)(w, B, M, 0, moved);
        V(times)(w, M, B, moved, moved);
    }
    for (int j = steps - 1; j >= 0; j--) {
        const double alpha = 1 / ((2 * j + 2.0) * (2 * j + 3));
        if (M) {
            V(both)(w, M, alpha, moved, q, square, p, one);
            p = one;
            SWAP(one, other);
        }
        if (j > 0 || squares || U) {
            V(series)(w, 2 * j + 1, B, alpha, square, q, next);
            SWAP(q, next);
        }
    }
    for (int k = 0; k < squares; k++) {
        if (M) {
            V(times)(w, q, p, 0, one);
            V(times)(w, p, q, one, one);
            p = one;
            SWAP(one, other);
        }
        if (U || k + 1 < squares) {
            V(times)(w, q, q, 0, next);
            SWAP(q, next);
        }
    }
#undef SWAP
    if (U) V(affine)(w, 0, 1, q, U);
    if (M) V(affine)(w, 0, factor, p, D);
    return 1;
}

/* U = rule(B); 0 where there is none. room: 7 matrices. */
static int V(rule)(const Work *w, const double *B, double *U, double *room) {
    if (w->rule == RK2)
        V(series)(w, 1, B, 0.5, B, B, U);
    else if (w->rule == CAYLEY) {
        if (!V(resolvent)(w, B, U)) return 0;
        V(affine)(w, -1, 2, U, U);
    } else
        return V(exponential)(w, B, 0, U, 0, room);
    return 1;
}

/* D = the derivative of the rule at B, of which Cayley layers U need nothing else, in the direction M. room: 7 matrices. */
static void V(derivative)(const Work *w, const double *B, const double *U, const double *M, double *D, double *room) {
    if (w->rule == CAYLEY) { /* (U + I) M (U + I) / 4 */
        V(affine)(w, 0.5, 0.5, U, room);
        V(times)(w, room, M, 0, room + V(size)(w));
        V(times)(w, room + V(size)(w), room, 0, D);
    } else if (w->rule == RK2)
        V(both)(w, M, 0.5, B, M, M, B, D);
    else
        V(exponential)(w, B, M, 0, D, room);
}
