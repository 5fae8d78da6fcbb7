/* The compiled engine: depth products and gradients of small dense matrices, in plain C, float64, C-contiguous arrays.

   flow_*: the collocation equations of the continuous model (docs/performance.md). Both halves are put such that they
   read alike: X' = X B with X = I in the middle of the panel, where X = u^T and B = W^T, or X = v and B = -W. With the
   slopes f = (I + J f) B a sweep is one product per node.
   chain_*: a chain of layers U_L ... U_1, given as they are or as W_k with a layer rule (depth/rules).
   The caller gives the scratch memory; forward writes z, backward takes the gradient there. A scratch is used by one
   caller at a time, from forward to backward. Nothing else is kept.

   grams: matrices seen along four directions.

   One translation unit. target.h is included once for each instruction set (TARGET), with parts.h, flow.h, chain.h and
   grams.h; it includes product.h and sweeps.h once for each type of number (REAL). Matrices in the scratch have rows of ld >= d
   numbers, and n >= ld^2 numbers in all. Those of a flow are filled up with zeros; of those of a chain nothing is read
   from row and column d on. */

#include "work.h"

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
#define HAS(feature) (__builtin_cpu_supports(feature) != 0)
#else
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

/* What is known of the sizes alone. For a chain m is 0, for a flow L is. Returns the size of the scratch in doubles. */
static long plan(Work *w, double *memory, long members, long panels, long L, int m, int d, int rule, int threads) {
    static const double cost[] = {3, 3, 7, 12, 18}; /* products for each layer, of each rule */
    const double products = (m ? 24.0 * panels * m : cost[rule] * L) * members;
    const int ld = d <= FOURS ? (d + 3) / 4 * 4 : (d + 7) / 8 * 8;
    const int both = m && ld == 4;
    const long n = both ? ld * ld : ((long)ld * ld + CHUNK - 1) / CHUNK * CHUNK;
    threads = crew(products, d, threads < 1 ? 1 : threads > MAX_THREADS ? MAX_THREADS : threads);
    const int turned = rule > EULER, keep = !m && members * L * n * (long)sizeof(double) <= SHORT;
    long length = keep ? (members >= threads ? L : (L + threads - 1) / threads) : SEGMENT / (n * (long)sizeof(double)) + 2;
    if (length > L) length = L;
    const long parts = m ? panels : (L + length - 1) / length, all = members * parts, pairs = (m + 1) / 2;
    *w = (Work){.d = d, .ld = ld, .m = m, .pairs = (int)pairs, .odd = m & 1, .both = both, .threads = threads, .members = members,
                .parts = parts, .n = n, .L = L, .length = length, .cuts = threads > all ? threads : 1, .rule = rule, .turned = turned,
                .rooms = both ? (int)(2 * m + 4 * pairs + 12) : m ? (int)(2 * m + 2 * pairs + 3 + (2 * pairs + m + 6) / 2 + 1) : turned ? 13 : 4};
    w->rows = m ? (int)(STRIP / (2 * pairs * ld * (long)sizeof(float)) / 8 * 8) : ld;
    if (w->rows < 8) w->rows = 8;
    /* Strips end where a CHUNK does: rows of 4 or 12 numbers, of small matrices, stay together. */
    if (w->rows > ld || ld % 8) w->rows = ld;
    w->room_size = (w->rooms + (m || keep ? 0 : turned ? 2 * length : length)) * n;
    long used = (sizeof(Work) + 63) / 64 * 8;
#define PLACE(name, size) w->name = (void *)(memory + used), used += ((size) + 7) / 8 * 8
    PLACE(room, threads * w->room_size);
    PLACE(products, all * n);
    PLACE(outer, all * n);
    PLACE(kept, keep ? members * L * n : 0);
    PLACE(units, keep && turned ? members * L * n : 0);
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

/* W (members, panels * m, d, d) -> z (members, d, d). J (m, m) and ends (2, m) are the integrals of the Lagrange
   polynomials from the middle of a panel to its nodes, and to its start and end. Returns 0, or 1 where W is too large
   or not resolved by the grid, and z means nothing. */
int flow_forward(const double *W, const double *J, const double *ends, long members, int panels, int m, int d,
                 int threads, void *scratch, double *z) {
    Work *w = scratch;
    huge(scratch, plan(w, scratch, members, panels, 0, m, d, PLAIN, threads));
    w->W = W, w->z = z;
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
    if (w->both)
        each(w, w->threads, members * panels, BEST(panel));
    else
        each(w, w->threads, 2 * members * panels, BEST(half));
    if (!w->failed) each(w, crew(3.0 * members * panels, w->d, w->threads), members * panels, BEST(across));
    if (!w->failed) each(w, crew(1.0 * members * panels, w->d, w->threads), members, BEST(join));
    return w->failed;
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

/* W (members, L, d, d) -> z (members, d, d), the product of the layers U_k = rule(alpha W_k), or W_k where the rule is
   PLAIN. Returns 0, or 1 where a layer cannot be made, and z means nothing. */
int chain_forward(const double *W, long members, long L, int d, int rule, double alpha, int threads, void *scratch,
                  double *z) {
    Work *w = scratch;
    huge(scratch, plan(w, scratch, members, 0, L, 0, d, rule, threads));
    w->W = W, w->alpha = alpha, w->z = z;
    each(w, w->threads, members * w->parts, BEST(products));
    if (!w->failed) each(w, crew(1.0 * members * w->parts, w->d, w->threads), members, BEST(join));
    return w->failed;
}

/* G (members, d, d) -> out, of the shape of W: the gradients with respect to alpha W_k, or to W_k itself. For layers as
   they are those are (U_L ... U_k+1)^T G (U_k-1 ... U_1)^T. */
void chain_backward(const double *G, void *scratch, double *out) {
    Work *w = scratch;
    w->G = G, w->out = out;
    huge(out, w->members * w->L * w->d * w->d);
    each(w, crew(2.0 * w->members * w->parts, w->d, w->threads), w->members, BEST(spread));
    each(w, w->threads, w->members * w->parts, BEST(layers));
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
