/* The compiled engine: depth products and gradients of small dense matrices, in plain C, float64, C-contiguous arrays.

   flow_*: the collocation equations of the continuous model (docs/performance.md). Both halves are put such that they
   read alike: X' = X B with X = I in the middle of the panel, where X = u^T and B = W^T, or X = v and B = -W. With the
   slopes f = (I + J f) B a sweep is one product per node.
   chain_*: a chain of layers U_L ... U_1, given as they are or as W_k with a layer rule (depth/rules).
   The caller gives the scratch memory; forward writes z, backward, once, takes the gradient there. A scratch is used by one
   caller at a time, from forward to backward. Nothing else is kept.

   neighbours: the law between neighbouring layers.
   grams: matrices seen along four directions.
   attempt: explicit Runge-Kutta steps of many states, each its own; whole ones where the loss is a square, else by stages. One
   step, or as many as lead to a time, of the size that pace.h chooses.
   closed: velocities of closed flows of z; ndf_step: steps of the one in logarithms by numerical differentiation formulas, after
   set_lapack.

   One translation unit. target.h is included once for each instruction set (TARGET), with parts.h, neighbours.h, columns.h,
   flow.h, chain.h, lanes.h, stages.h and grams.h; it includes product.h and sweeps.h once for each type of number (REAL), and the layer
   rules once for each way in which matrices lie (LAYOUT). Matrices in the scratch have rows of ld >= d
   numbers, and n >= ld^2 numbers in all. Those of a flow are filled up with zeros; of those of a chain nothing is read
   from row and column d on. */

#include "work.h"

const char *made_of(void) { return MADE_OF; } /* the SHA-256 of these files */

static Lapack lapack;
void set_lapack(void *syevd, void *getrf, void *getrs) { lapack = (Lapack){(Syevd *)syevd, (Getrf *)getrf, (Getrs *)getrs}; }

/* Numbers in the room of a frame of polar.h: matrices, singular values, and what LAPACK or the gradient needs. */
enum { FRAME = 10 };
static long frame_room(const Squares *loss, int d) {
    const long eigen = 1 + 6 * d + 2 * d * d + (3 + 5 * d) / 2 + 1, gradient = 2L * d * d + (long)loss->rows * (2 * d + loss->outputs);
    return ((long)FRAME * LD(d) * LD(d) + 2 * LD(d) + (eigen > gradient ? eigen : gradient) + 7) / 8 * 8;
}

/* Numbers in the room of the factors of divided.h, and what the gradient needs. */
static long factors_room(const Squares *loss, const Layers *layers, int d) {
    return (6L * LD(d) * LD(d) + LD(d) + 2 * layers->L + 2L * d * d + (long)loss->rows * (2 * d + loss->outputs) + 7) / 8 * 8;
}

#if defined __x86_64__ && defined __GNUC__ && !defined __clang__
#pragma GCC push_options
#pragma GCC target("avx512f,avx512dq,avx2,fma,prefer-vector-width=512")
#define TARGET _avx512
#define BYTES 64
#include "target.h"
#pragma GCC pop_options
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define TARGET _avx2
#define BYTES 32
#include "target.h"
#pragma GCC pop_options
#define BEST(name) (level() == 2 ? name##_avx512 : level() == 1 ? name##_avx2 : name##_plain)
#define SIDE_BY_SIDE(name) (w->beside == 8 ? name##_eight_avx512 : BEST(name##_four))
#define HAS(feature) (__builtin_cpu_supports(feature) != 0)
#else
#define SIDE_BY_SIDE(name) BEST(name##_four)
#define BEST(name) name##_plain
#define HAS(feature) 0
#endif
#define TARGET _plain
#define BYTES 16
#include "target.h"

static int most_level = 2;
void set_level(int level) { most_level = level; } /* for tests: a lower instruction set */

static inline int level(void) {
    const int best = HAS("avx512f") && HAS("avx512dq") ? 2 : HAS("avx2") && HAS("fma") ? 1 : 0;
    return best < most_level ? best : most_level;
}

#include "threads.h"
#include "pace.h"

/* What is known of the sizes alone. For a chain m is 0, for a flow L is. Returns the size of the scratch in doubles. */
static long plan(Work *w, double *memory, long members, long panels, long L, int m, int d, int rule, int threads) {
    static const double cost[] = {3, 3, 7, 12, 18}; /* products for each layer, of each rule */
    const double products = (m ? 24.0 * panels * m : cost[rule] * L) * members;
    const int ld = LD(d);
    /* Into how many parts that lie side by side a part is cut, or 0: up to which d it is worth joining them. */
    const int lanes = level() == 2 && L >= 8 && cost[rule] * L * d * d >= EIGHT ? 8 : 4;
    const int beside = !m && d <= (rule > EULER ? BESIDE : L < 16 ? 4 : 6) ? lanes : 0, both = m && ld == 4;
    const long n = both || beside ? ld * ld : ((long)ld * ld + CHUNK - 1) / CHUNK * CHUNK;
    threads = crew(products, d, threads < 1 ? 1 : threads);
    const int turned = rule > EULER, keep = !m && members * L * n * (long)sizeof(double) <= SHORT;
    /* A chain is cut alike whichever others there are, unless threads wait for parts of it. */
    const long longest = SEGMENT / (n * (long)sizeof(double)) + 2;
    const long shared = keep && members < threads ? (L + threads - 1) / threads : L;
    long length = shared < longest ? shared : longest, groups = m ? panels : (L + length - 1) / length;
    if (beside) { /* of parts of whole layers fewer groups may be enough: none is without layers */
        const long wanted = beside * groups;
        length = (L + wanted - 1) / wanted, groups = (L + beside * length - 1) / (beside * length);
    }
    const long parts = (beside ? beside : 1) * groups;
    const long all = members * parts, pairs = (m + 1) / 2, size = beside ? all * length * d * d : members * L * n;
    const long flow_rooms = both ? 8 * m + 4 * pairs + 8 : 2 * m + 2 * pairs + 3 + (2 * pairs + m + 6) / 2 + 1;
    *w = (Work){.d = d, .ld = ld, .m = m, .pairs = (int)pairs, .odd = m & 1, .both = both, .beside = beside, .threads = threads,
                .members = members, .parts = parts, .n = n, .L = L, .length = length, .cuts = threads > all ? threads : 1,
                .rule = rule, .turned = turned, .rooms = m ? (int)flow_rooms : beside ? 12 * beside : turned ? 14 : 4};
    const long eight = 8 * 2 * pairs * ld * (long)sizeof(float); /* bytes of f in float, of 8 rows */
    w->rows = !m ? ld : eight <= NARROW || eight > STRIP ? 8 : (int)(STRIP / eight * 8);
    /* Strips end where a CHUNK does: rows of 12 numbers, of small matrices, stay together. */
    if (w->rows > ld || ld % 8) w->rows = ld;
    w->room_size = (w->rooms + (m || keep ? 0 : beside ? 2 * beside * length : turned ? 2 * length : length)) * n;
    long used = (sizeof(Work) + 63) / 64 * 8;
#define PLACE(name, size) w->name = (void *)(memory + used), used += ((size) + 7) / 8 * 8
    PLACE(room, threads * w->room_size);
    PLACE(products, all * n);
    PLACE(outer, all * n);
    PLACE(kept, keep ? size : 0);
    PLACE(units, keep && (turned || beside) ? size : 0);
    if (!keep) w->kept = 0;
    PLACE(c, (pairs + 1) * 2 * pairs);
    PLACE(cf, (pairs + 1) * pairs);
    PLACE(terms, all);
    PLACE(X, all * 2 * m * n);
    PLACE(ends, m ? all * 4 * n : 0);
    PLACE(middle, m ? all * 3 * n : 0);
    return used;
}

/* Asks for huge pages: the faults of small ones in new memory of many megabytes take as long as the products. */
static void huge(void *memory, long numbers) {
#ifdef MADV_HUGEPAGE
    const uintptr_t page = 1 << 21, start = ((uintptr_t)memory + page - 1) & -page,
                    end = ((uintptr_t)memory + numbers * sizeof(double)) & -page;
    if (end > start) madvise((void *)start, end - start, MADV_HUGEPAGE);
#endif
}

/* Bytes of scratch memory, to be aligned to 64. */
long flow_scratch(long members, int panels, int m, int d, int threads) {
    Work w;
    return plan(&w, 0, members, panels, 0, m, d, PLAIN, threads) * (long)sizeof(double);
}

/* Lays out the scratch of flows on a grid. J (m, m) and ends (2, m) are the integrals of the Lagrange polynomials from the middle
   of a panel to its nodes, and to its start and end. */
static void flow_laid(const double *J, const double *ends, long members, int panels, int m, int d, int threads, void *scratch) {
    Work *w = scratch;
    huge(scratch, plan(w, scratch, members, panels, 0, m, d, PLAIN, threads));
    for (int p = 0; p <= w->pairs; p++) {
        const double *row = p < w->pairs ? J + (m / 2 + p) * m : ends + m;
        double *c = w->c + p * 2 * w->pairs;
        for (int q = 0; q < w->pairs; q++) {
            const int right = m / 2 + q, left = m - 1 - right;
            c[q] = right == left ? row[right] : (row[right] + row[left]) / 2;
            c[w->pairs + q] = (row[right] - row[left]) / 2;
        }
    }
    for (int q = 0; q < (w->pairs + 1) * 2 * w->pairs; q++) w->cf[q] = (float)w->c[q];
}

/* W (members, panels * m, d, d) -> z (members, d, d), in scratch that is laid out. Returns 0, or 1 where W is too large or not
   resolved by the grid, and z means nothing. */
static int flow_product(const double *W, void *scratch, double *z) {
    Work *w = scratch;
    const long panels = w->members * w->parts;
    w->W = W, w->z = z, w->failed = 0;
    if (w->both)
        each(w, w->threads, panels, BEST(panel));
    else
        each(w, w->threads, 2 * panels, BEST(half));
    if (!w->failed) each(w, crew(3.0 * panels, w->d, w->threads), panels, BEST(across));
    if (!w->failed) each(w, crew(1.0 * panels, w->d, w->threads), w->members, BEST(join));
    return w->failed;
}

int flow_forward(const double *W, const double *J, const double *ends, long members, int panels, int m, int d,
                 int threads, void *scratch, double *z) {
    flow_laid(J, ends, members, panels, m, d, threads, scratch);
    return flow_product(W, scratch, z);
}

/* G (members, d, d) -> out, of the shape of W: P(1,s)^T G P(s,0)^T at the nodes. */
void flow_backward(const double *G, void *scratch, double *out) {
    Work *w = scratch;
    w->G = G, w->out = out;
    each(w, crew(2.0 * w->members * w->parts, w->d, w->threads), w->members, BEST(spread));
    each(w, w->threads, w->members * w->parts * w->cuts, BEST(nodes));
}

long chain_scratch(long members, long L, int d, int rule, int threads) {
    Work w;
    return plan(&w, 0, members, 0, L, 0, d, rule, threads) * (long)sizeof(double);
}

/* A pass over the parts of a chain, each by itself or as many as there are lanes side by side. */
static void over_parts(Work *w, Step *one, Step *side_by_side) {
    each(w, w->threads, w->members * w->parts / (w->beside ? w->beside : 1), w->beside ? side_by_side : one);
}

static void chain_laid(long members, long L, int d, int rule, double alpha, int threads, void *scratch) {
    Work *w = scratch;
    huge(scratch, plan(w, scratch, members, 0, L, 0, d, rule, threads));
    w->alpha = alpha;
}

/* W (members, L, d, d) -> z (members, d, d), the product of the layers U_k = rule(alpha W_k), or W_k where the rule is
   PLAIN, in scratch that is laid out. Returns 0, or 1 where a layer cannot be made, and z means nothing. */
static int chain_product(const double *W, void *scratch, double *z) {
    Work *w = scratch;
    w->W = W, w->z = z, w->failed = 0;
    over_parts(w, BEST(products), SIDE_BY_SIDE(products));
    if (!w->failed) each(w, crew(1.0 * w->members * w->parts, w->d, w->threads), w->members, BEST(join));
    return w->failed;
}

int chain_forward(const double *W, long members, long L, int d, int rule, double alpha, int threads, void *scratch,
                  double *z) {
    chain_laid(members, L, d, rule, alpha, threads, scratch);
    return chain_product(W, scratch, z);
}

/* G (members, d, d) -> out, of the shape of W: the gradients with respect to alpha W_k, or to W_k itself. For layers as
   they are those are (U_L ... U_k+1)^T G (U_k-1 ... U_1)^T. */
void chain_backward(const double *G, void *scratch, double *out) {
    Work *w = scratch;
    w->G = G, w->out = out;
    huge(out, w->members * w->L * w->d * w->d);
    each(w, crew(2.0 * w->members * w->parts, w->d, w->threads), w->members, BEST(spread));
    over_parts(w, BEST(layers), SIDE_BY_SIDE(layers));
}

/* C = A B for matrices (outer, inner, d, d), of which A and B lie as they say. */
void multiply(const Laid *A, const Laid *B, long outer, long inner, int d, int threads, double *C) {
    Products products = {*A, *B, C, inner, outer * inner};
    Work w = {.d = d, .ld = LD(d), .task = &products};
    each(&w, crew((double)products.count, d, threads), (products.count + MANY - 1) / MANY, BEST(multiply));
}

/* W (members, L, d, d) -> law (members, L - 1, d, d) between neighbours, d <= BESIDE. */
void neighbours(const double *W, long members, long L, int d, int mean, int threads, double *law) {
    Neighbours pairs = {W, law, L, members * (L - 1), mean};
    Work w = {.d = d, .task = &pairs};
    each(&w, crew(3.0 * pairs.count, d, threads), (pairs.count + MANY - 1) / MANY, BEST(neighbours));
}

/* X (count, d, d), V (d, 4) -> right and left (count, 4, 4): the Gram matrices of the columns of X V and of X^T V. */
void grams(const double *X, const double *V, long count, int d, double *right, double *left) {
    for (long k = 0; k < count; k++)
        BEST(grams)(d, X + k * d * d, V, NULL, 0, NULL, right + 16 * k, left + 16 * k);
}

/* Adds up what steps of members of N matrices looked like, where it is of pairs of them: right_k+apart - left_k. */
static void add_up(Moves *s, long members, long N, int apart) {
    const double *seen = s->seen, *before = s->before;
    double *after = s->after;
    for (long m = 0; m < members; m++, seen += 32 * apart)
        for (long k = 0; k < N - apart; k++, seen += 32, before += 16, after += 16)
            add_plain(s, before, seen + 32 * apart, seen + 16, after);
}

/* X (members, N, d, d) becomes W + rate X. Of the steps from W to there, right_k+apart - left_k is added to `before`
   (members, N - apart, 4, 4), which gives `after`; `seen` is room for 32 numbers of each matrix, NULL where apart is 0.
   Returns 1 where a number is not finite. */
int stepped(const double *W, double *X, double rate, const double *V, long members, long N, int apart, int d, int threads,
            const double *before, double *seen, double *after) {
    Moves moves = {rate, V, before, seen, after, 0};
    Work w = {.d = d, .W = W, .out = X, .moves = &moves};
    if (threads > MAX_THREADS) threads = MAX_THREADS;
    each(&w, members * N * d * d < STEP_WORTH ? 1 : threads, members * N, BEST(move));
    if (seen) add_up(&moves, members, N, apart);
    return moves.spoiled;
}

/* As flow_backward or chain_backward, and then as `stepped` along what that gives, from the W of the forward pass; each
   matrix moves while it is in the cache. Matrices are compared in pairs, apart = 1, where `seen` is given. */
int descend(const double *G, void *scratch, double *out, double rate, const double *V, const double *before, double *seen,
            double *after) {
    Work *w = scratch;
    Moves moves = {rate, V, before, seen, after, 0};
    w->moves = &moves;
    (w->m ? flow_backward : chain_backward)(G, scratch, out);
    if (seen) add_up(&moves, w->members, w->m ? w->parts * w->m : w->L, 1);
    return moves.spoiled;
}

/* The ways of many states, one member in each row, to a time, by as many steps. A row goes on until it is there, has no step
   or velocities left, has tried `rounds` steps, or is somewhere that the caller is to look at: beyond the range of numbers,
   or, where `sign` (rows) is given, where det z has no sign beyond doubt, or another one. */
typedef struct {
    Pace pace;
    double goal;
    long rounds;
    Stand *stands, *since; /* (rows): where they are, and where they took their last step from, */
    double *since_y, *since_f; /* with states and slopes there */
    Try *tries;
    long *left, *tried, *took; /* (rows): velocities that may be had, steps that were tried and taken */
    int *going;                /* (rows) */
    const double *sign;
    double *z; /* (rows, members, d, d): that of states that took a step, of a flow or a chain */
} Legs;

/* Explicit steps of one formula, of states `(rows, members, N, d, d)` of a flow, of a chain where m is 0, of the closed flow in
   logarithms, N = 2, or, where there are shifts, of that of layers, N = 1. */
typedef struct {
    long rows, members, L, N, numbers, size; /* numbers of a state, and of the scratch of its passes */
    int panels, m, d, rule, polar, threads, stages, estimates;
    double alpha, rtol, atol;
    const double *J, *ends, *weights, *solution, *errors;
    Squares loss;
    Layers layers;
    double *h, *y, *f;
    double *ahead, *slope, *error, *z, *G; /* z and G (rows, members, d, d) where the caller knows the loss, or 0 */
    Legs *legs;                            /* of rows that are on their way, or 0 for one step of each */
} Steps;

#define CLOSED(s) ((s)->polar || (s)->layers.shifts)

/* What a state works in, while its step is tried. */
typedef struct {
    double *scratch, *K, *trial, *z, *G, *rest;
} Bench;

static Bench bench(const Steps *s, long row, double *room) {
    const long square = s->members * s->d * s->d;
    double *K = room + s->size, *trial = K + (s->stages + 1) * s->numbers, *z = trial + s->numbers, *G = z + square;
    return s->z ? (Bench){room, K, trial, s->z + row * square, s->G + row * square, 0} : (Bench){room, K, trial, z, G, G + square};
}

/* The k-th stage of a state, and z there. Returns 0, or 1 where there is none. */
static int stage(const Steps *s, long row, int k, const Bench *b) {
    double *W = k == s->stages && !s->solution ? s->ahead + row * s->numbers : b->trial;
    if (k == 1) memcpy(b->K, s->f + row * s->numbers, s->numbers * sizeof(double));
    BEST(blend)(s->numbers, k, s->weights + (k - 1) * (s->stages + 1), b->K, s->h[row], s->y + row * s->numbers, W);
    const long n = (long)s->d * s->d;
    for (long j = 0; CLOSED(s) && j < s->members; j++) {
        const double *shifts = s->layers.shifts + (row * s->members + j) * s->layers.apart;
        double *room = b->scratch + j * s->size / s->members, *z = b->z + j * n;
        if (s->polar ? BEST(polar_forward)(s->d, W + 2 * j * n, room, z)
                     : BEST(divided_forward)(s->d, &s->layers, shifts, W + j * n, room, z))
            return 1;
    }
    if (CLOSED(s)) return 0;
    if (k == 1) { /* the scratch stays laid out for the other stages */
        if (s->m)
            flow_laid(s->J, s->ends, s->members, s->panels, s->m, s->d, s->threads, b->scratch);
        else
            chain_laid(s->members, s->L, s->d, s->rule, s->alpha, s->threads, b->scratch);
    }
    return (s->m ? flow_product : chain_product)(W, b->scratch, b->z);
}

/* The slope there from G at z, minus the gradient. Returns 0, or 1 where it is not finite. */
static int slope(const Steps *s, int k, const Bench *b) {
    double *out = b->K + k * s->numbers;
    const long n = (long)s->d * s->d;
    for (long j = 0; CLOSED(s) && j < s->members; j++) {
        double *room = b->scratch + j * s->size / s->members;
        if (s->polar)
            BEST(polar_backward)(s->d, b->G + j * n, room, out + 2 * j * n);
        else
            BEST(divided_backward)(s->d, &s->layers, b->G + j * n, room, out + j * n);
    }
    if (!CLOSED(s)) (s->m ? flow_backward : chain_backward)(b->G, b->scratch, out);
    return !BEST(finite)(s->numbers, out);
}

/* Where a step leads, the slope there, and its error over the tolerance. */
static void concluded(const Steps *s, long row, const Bench *b) {
    const long n = s->numbers;
    const int wide = s->stages + 1;
    const double *y = s->y + row * n, h = fabs(s->h[row]);
    double *ahead = s->ahead + row * n, e[2];
    if (s->solution) BEST(blend)(n, wide, s->solution, b->K, s->h[row], y, ahead);
    memcpy(s->slope + row * n, b->K + s->stages * n, n * sizeof(double));
    for (int k = 0; k < s->estimates; k++)
        e[k] = BEST(excess)(n, wide, s->errors + k * wide, b->K, s->rtol, s->atol, y, ahead);
    if (s->estimates == 1)
        s->error[row] = h * sqrt(e[0] / n);
    else {
        const double both = (e[0] + 0.01 * e[1]) * n; /* 0 also where the second underflows */
        s->error[row] = both == 0 ? 0 : h * e[0] / sqrt(both);
    }
}

/* G at z of each member of a row. */
static void downhill(const Steps *s, long row, const Bench *b) {
    const long n = (long)s->d * s->d;
    for (long k = 0; k < s->members; k++) {
        const Squares own = of_member(&s->loss, row * s->members + k);
        BEST(downhill)(&own, s->d, b->z + k * n, b->rest, b->G + k * n);
    }
}

/* A whole step of a state. Its error is NaN where there is none. */
static void whole_step(const Steps *s, long row, const Bench *b) {
    s->error[row] = NAN;
    for (int k = 1; k <= s->stages; k++) {
        if (stage(s, row, k, b)) return;
        downhill(s, row, b);
        if (slope(s, k, b)) return;
    }
    concluded(s, row, b);
}

/* Whether a row has another step to try, of size h. */
static int goes_on(const Steps *s, long row) {
    Legs *l = s->legs;
    Stand *at = l->stands + row;
    Try next;
    if (!l->going[row] || l->tried[row] == l->rounds || at->t >= l->goal || l->left[row] < s->stages) return l->going[row] = 0;
    if (!at->again) at->begun = at->h;
    if (planned(&l->pace, at, l->goal, &next)) return l->going[row] = 0;
    l->tries[row] = next, s->h[row] = next.h;
    return 1;
}

/* The sign of det z, 0 where round-off may have made it; LU holds d^2 numbers. With the others at most as large as |z| allows,
   the least singular value must be far above round-off (time/barrier.py; twice as far). */
static int sign_of_det(int d, const double *z, double *LU) {
    double logarithm = 0, square = 0;
    int sign = 1;
    for (int q = 0; q < d * d; q++) LU[q] = z[q], square += z[q] * z[q];
    for (int k = 0; k < d; k++) {
        int best = k;
        for (int i = k + 1; i < d; i++)
            if (fabs(LU[i * d + k]) > fabs(LU[best * d + k])) best = i;
        for (int j = 0; best > k && j < d; j++) {
            const double other = LU[k * d + j];
            LU[k * d + j] = LU[best * d + j], LU[best * d + j] = other;
        }
        const double pivot = LU[k * d + k];
        sign *= (best > k ? -1 : 1) * (pivot < 0 ? -1 : 1), logarithm += log(fabs(pivot));
        for (int i = k + 1; i < d; i++) {
            const double c = LU[i * d + k] / pivot;
            for (int j = k + 1; j < d; j++) LU[i * d + j] -= c * LU[k * d + j];
        }
    }
    const double size = log(square) / 2, others = d - 1;
    return logarithm - others * (size - (d > 1 ? log(others) / 2 : 0)) > log(2e3 * d * DBL_EPSILON) + size ? sign : 0;
}

/* Whether where a row has come to needs no look; z is there. */
static int in_order(const Steps *s, long row, const Bench *b) {
    const long n = (long)s->d * s->d;
    for (long j = 0; s->polar && j < s->members; j++) {
        const double *S = s->y + row * s->numbers + (2 * j + 1) * n;
        double square = 0;
        for (long q = 0; q < n; q++) square += S[q] * S[q];
        if (!(square <= LOG_LARGEST * LOG_LARGEST)) return 0;
    }
    const double *sign = s->legs->sign;
    return !sign || (sign[row] != 0 && sign_of_det(s->d, b->z, b->G) == sign[row]);
}

/* What becomes of a step that was tried: the row moves, or is to try a smaller one. */
static void moved_on(const Steps *s, long row, const Bench *b) {
    Legs *l = s->legs;
    Stand *at = l->stands + row;
    const Try *tried = l->tries + row;
    const long size = s->numbers * sizeof(double), from = row * s->numbers;
    if (isnan(s->error[row])) {
        l->going[row] = 0;
        return;
    }
    l->tried[row]++, l->left[row] -= s->stages;
    double h;
    at->again = !judged(&l->pace, s->error[row], tried, at->again, l->goal, &h);
    if (!at->again) {
        l->since[row] = (Stand){at->t, at->begun, at->begun, 0};
        memcpy(l->since_y + from, s->y + from, size), memcpy(l->since_f + from, s->f + from, size);
        memcpy(s->y + from, s->ahead + from, size), memcpy(s->f + from, s->slope + from, size);
        const long square = s->members * s->d * s->d;
        if (l->z) memcpy(l->z + row * square, b->z, square * sizeof(double));
        at->t = tried->end, l->took[row]++, l->going[row] = in_order(s, row, b);
    }
    at->h = h;
}

static void one_row(Work *w, long row, double *room) {
    const Steps *s = w->task;
    const Bench b = bench(s, row, room);
    if (!s->legs)
        whole_step(s, row, &b);
    else
        while (goes_on(s, row)) whole_step(s, row, &b), moved_on(s, row, &b);
}

/* For the caller, who asks of all rows at once: the identity in place of a z. */
static void no_map(const Steps *s, const Bench *b) {
    const long d = s->d;
    for (long q = 0; q < s->members * d * d; q++) b->z[q] = q % (d * d) % (d + 1) == 0;
}

/* The same in parts, between which the caller makes G of z: what is after stage k - 1 and up to z of stage k. */
static void one_stage(Work *w, long row, double *room) {
    const Steps *s = w->task;
    const Bench b = bench(s, row, w->room + row * w->room_size);
    const int k = w->rows;
    (void)room;
    if (s->legs && (k == 1 ? !goes_on(s, row) : !s->legs->going[row])) {
        /* It rests, and the caller sees the z that it had; at first there is none. */
        if (k == 1 && !s->legs->tried[row]) no_map(s, &b);
        return;
    }
    if (k == 1) s->error[row] = 0;
    if (isnan(s->error[row]) || (k > 1 && slope(s, k - 1, &b)) || (k <= s->stages && stage(s, row, k, &b))) {
        no_map(s, &b);
        s->error[row] = NAN;
    } else if (k > s->stages)
        concluded(s, row, &b);
    if (s->legs && k > s->stages) moved_on(s, row, &b);
}

/* What is known of sizes: bytes of the scratch, to be aligned to 64; `w` gets what `each` needs. */
static long prepared(const Steps *given, Work *w, Steps *s) {
    *s = *given;
    s->N = s->polar ? 2 : s->layers.shifts ? 1 : s->m ? (long)s->panels * s->m : s->L;
    s->numbers = s->members * s->N * s->d * s->d;
    if (s->polar)
        s->size = s->members * frame_room(&s->loss, s->d), w->threads = 1;
    else if (s->layers.shifts)
        s->size = s->members * factors_room(&s->loss, &s->layers, s->d), w->threads = 1;
    else
        s->size = (plan(w, 0, s->members, s->panels, s->m ? 0 : s->L, s->m, s->d, s->rule, s->threads) + 7) / 8 * 8;
    /* States are shared out where one of them is not worth two threads. Twenty products stand for a matrix. */
    const double matrices = s->layers.shifts ? DIVIDED(s->layers.L) / 20 : s->N;
    const int outer = w->threads == 1 && s->rows > 1 ? crew(20 * matrices * s->rows * s->members, s->d, s->threads) : 1;
    const long own = s->z ? 0 : 2 * s->members * s->d * s->d + s->loss.rows * (2 * s->d + s->loss.outputs);
    *w = (Work){.threads = outer, .task = s, .room_size = (s->size + (2 + s->stages) * s->numbers + own + 7) / 8 * 8};
    return (s->z ? s->rows : outer) * w->room_size * (long)sizeof(double);
}

long attempt_scratch(const Steps *given) {
    Work w;
    Steps s;
    return prepared(given, &w, &s);
}

/* A step of size h of each state from y along f, by a formula with a slope for each of its stages after f: their `weights`
   (stages, stages + 1), of which the last lead ahead unless there is a `solution` (stages + 1), and `errors` (estimates,
   stages + 1). Where a velocity could not be had, the error is NaN and nothing else means anything.

   With `legs`, rows take steps until they stop, of sizes h that are chosen here; y and f move with them.

   With z and G these are for k = 1 ... stages + 1 calls, after each of which but the last the caller puts into G minus
   the gradient at z, and with `legs` more of them until no row goes on; else k is 0, and there is one call. */
void attempt(const Steps *given, void *scratch, int k) {
    Work w;
    Steps s;
    prepared(given, &w, &s);
    w.room = scratch, w.rows = k;
    each(&w, w.threads, s.rows, k ? one_stage : one_row);
}

/* Velocities of the closed flow at states (states, 2, d, d), or, where there are shifts, of that of layers at states (states, d, d);
   of a square, or, where there are z and G (states, d, d), of any loss,
   minus whose gradient the caller puts there in between. */
typedef struct {
    Squares loss;
    Layers layers;
    int d, threads;
    long states;
    const double *y;
    double *out, *z, *G;
    int *failed; /* (states), 1 where there is none */
} Closed;

static void one_closed(Work *w, long k, double *room) {
    const Closed *p = w->task;
    const Layers *layers = p->layers.shifts ? &p->layers : 0;
    const long n = (long)p->d * p->d, numbers = layers ? n : 2 * n;
    const double *y = p->y + k * numbers, *shifts = p->layers.shifts + k * p->layers.apart;
    const Squares loss = of_member(&p->loss, k);
    double *own = w->room + k * w->room_size, *z = p->z ? p->z + k * n : 0, *out = p->out + k * numbers;
    if (!p->z)
        p->failed[k] = layers ? BEST(divided)(&loss, p->d, layers, shifts, y, room, out)
                              : BEST(polar)(&loss, p->d, y, room, out);
    else if (!w->rows) {
        p->failed[k] = layers ? BEST(divided_forward)(p->d, layers, shifts, y, own, z) : BEST(polar_forward)(p->d, y, own, z);
        for (long q = 0; p->failed[k] && q < n; q++) z[q] = q % (p->d + 1) == 0; /* for the caller: the identity */
    } else if (!p->failed[k]) {
        if (layers)
            BEST(divided_backward)(p->d, layers, p->G + k * n, own, out);
        else
            BEST(polar_backward)(p->d, p->G + k * n, own, out);
        p->failed[k] = !BEST(finite)(numbers, out);
    }
}

static Work closed_work(const Closed *p) {
    /* Eigenvectors and their products cost as much as sixty products. */
    const double products = p->layers.shifts ? DIVIDED(p->layers.L) : 60;
    const long room = p->layers.shifts ? factors_room(&p->loss, &p->layers, p->d) : frame_room(&p->loss, p->d);
    return (Work){.threads = crew(products * p->states, p->d, p->threads), .task = (void *)p, .room_size = room};
}

/* Bytes of the scratch. */
long closed_scratch(const Closed *p) {
    const Work w = closed_work(p);
    return (p->z ? p->states : w.threads) * w.room_size * (long)sizeof(double);
}

/* Velocities; in two calls with the same scratch where the caller knows the loss, back = 0 up to z and 1 from G on. Returns
   of how many states there is none. */
long closed(const Closed *p, void *scratch, int back) {
    Work w = closed_work(p);
    w.room = scratch, w.rows = back;
    each(&w, w.threads, p->states, one_closed);
    long failed = 0;
    for (long k = 0; k < p->states; k++) failed += p->failed[k];
    return failed;
}

/* Numbers that a run keeps between its steps, and those that a step needs besides. */
long ndf_kept(const Ndf *s) {
    const long n = (long)LD(s->d) * LD(s->d), square = (long)s->d * s->d;
    return frame_room(&s->loss, s->d) + 2 * n + square + square * square + square / 2 + 1;
}
long ndf_room(const Ndf *s) { return (ORDERS + 3 + 3) * s->n + frame_room(&s->loss, s->d); }

/* One accepted step, from where s stands. Returns 1, or 0 where the caller is to take it; D is then what it was. */
int ndf_step(Ndf *s) {
    const long size = (ORDERS + 3) * s->n;
    memcpy(s->room, s->D, size * sizeof(double));
    s->evaluations = s->products = 0;
    if (BEST(ndf_step)(s, s->room + size)) return 1;
    memcpy(s->D, s->room, size * sizeof(double));
    s->linear = s->factored = 0;
    return 0;
}

/* What the caller thinks they are as long as. */
long ndf_size(void) { return sizeof(Ndf); }
long closed_size(void) { return sizeof(Closed); }
long steps_size(void) { return sizeof(Steps); }
long legs_size(void) { return sizeof(Legs); }
