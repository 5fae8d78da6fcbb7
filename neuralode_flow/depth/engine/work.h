/* What all files share: constants, names by type of number and instruction set, and what a call works on. */

#define _GNU_SOURCE
#include <float.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>
#ifdef __linux__
#include <sys/mman.h>
#endif

enum { CHUNK = 32, FOURS = 12, MAX_SWEEPS = 40, MAX_REFINEMENTS = 4, MAX_THREADS = 16, LARGEST_D = 256, BESIDE = 8 };
enum { COLUMN = 8 }; /* rows of both halves of a panel of matrices of at most 4 x 4 */
enum { ONE, SUM, SCALED, TWO }; /* A B, S + A B, a I + S + alpha A B, S + alpha (A B + D E), of lanes.h */
enum { ITSELF, TURNED, INWARDS, OUTWARDS, SIDES }; /* W, W^T, W^T W, W W^T, of neighbours.h */
enum { PLAIN, EULER, RK2, CAYLEY, EXP }; /* layer rules; PLAIN: the layers as they are */
#define SMALL 8         /* d up to which rotations diagonalise a symmetric matrix */
#define LAYERED 32      /* d up to which divided.h works; divided.py has the same bound */
#define LARGEST 3.0     /* h|W|, as seen in the first sweep */
#define FAR 1e3         /* I + J f */
#define NEAR 0.25       /* the largest sum of a row or column of |C - I| */
#define FASTEST 0.01    /* what a sweep is trusted to gain, were it more in the last one by chance */
#define TOLERANCE 3e-16 /* of J f */
#define ROUGH 4e-8      /* of a solution in float that will be refined */
#define REFINED 6e-8    /* a correction below it is as good in float */
#define NARROW (1L << 15)  /* bytes of f in float, of all nodes of a panel, that stay in the first cache; 8 rows at least */
#define STRIP (1L << 18)   /* those that are worked on together where 8 rows are more */
#define SEGMENT (1L << 18) /* bytes of a part of a long chain, whose products before each layer are made twice */
#define SHORT (1L << 21)   /* bytes of a chain up to which they are stored */
#define EIGHT 1024         /* products times d^2 of a chain from which on eight parts lie side by side, where vectors are so long */
#define MANY 64         /* products that a thread takes at once */
#define MULTIPLIED 32   /* d up to which they are for the engine; compiled.py has the same bound */
#define WORTH 4e6          /* multiplications that are worth another thread */
#define STEP_WORTH 2e4     /* numbers of a step that are, right after a velocity: the others still spin */
#define LD(d) ((d) <= FOURS ? ((d) + 3) / 4 * 4 : ((d) + 7) / 8 * 8) /* numbers of a row of a matrix that is filled up */
#define LEAST 1e-130    /* squares and products below it may lose digits */
#define SETTLED 1e-8    /* a step of Newton's whose square is below round-off */
#define DIVIDED(L) (60.0 + 3 * (L)) /* products that a velocity of divided.h costs */
#define LOG_LARGEST 87.49823353377374 /* log 1e38: singular values are as large at most (flows/polar.py) */

typedef double four __attribute__((vector_size(32), aligned(8), may_alias));

/* A function of (d, ld, ...) for each ld up to LAYERED, which it unrolls. */
#define BY_ROWS(f, d, ld, ...)                                                                                        \
    ((ld) == 4 ? f(d, 4, __VA_ARGS__) : (ld) == 8 ? f(d, 8, __VA_ARGS__) : (ld) == 12 ? f(d, 12, __VA_ARGS__)         \
     : (ld) == 16 ? f(d, 16, __VA_ARGS__) : (ld) == 24 ? f(d, 24, __VA_ARGS__) : f(d, 32, __VA_ARGS__))

#define INLINE static inline __attribute__((always_inline))
#define UNROLL _Pragma("GCC unroll 8")
#define CAT_(x, y) x##y
#define CAT(x, y) CAT_(x, y)
#define T(x) CAT(x, TARGET)
#define R(x) CAT(CAT(x, REAL), TARGET)
#define V(x) T(CAT(x, LAYOUT))
#ifdef __clang__
#define SHUFFLE(x, y, ...) __builtin_shufflevector(x, y, __VA_ARGS__)
#else
typedef int64_t Order __attribute__((vector_size(32)));
#define SHUFFLE(x, y, ...) __builtin_shuffle(x, y, (Order){__VA_ARGS__})
#endif

/* Whether sweeps end that have changed J f by so much: 1 where what is left is below round-off, -1 where they fail. */
INLINE int ended(int sweep, double change, double before, double size, double tolerance, double limit,
                 double round_off) {
    const double rate = fmin(fmax(change / before, FASTEST), 1);
    if ((sweep == 1 && !(change <= limit)) || !(size <= FAR)) return -1;
    /* A pair that is alone sees no change in the first sweep. */
    return sweep > 1 && (change * rate <= tolerance * (1 + size) || change <= round_off * size);
}

/* The i-th pair of n rows, an even number, in a round in which each of them is in one; in n - 1 rounds all pairs come. */
INLINE void opposed(int n, int round, int i, int *p, int *q) {
    *p = i ? (round + i) % (n - 1) : n - 1, *q = (round - i + n - 1) % (n - 1);
}

/* The node of W, of m in a panel, that stands at place k of a half: from the middle outwards, right and left in turn. */
INLINE int node(int m, int k) {
    const int odd = m & 1, p = (k + odd) / 2;
    return (k + odd) % 2 ? m - 1 - m / 2 - p : m / 2 + p;
}

/* Steps of a rate along the matrices of `out`, which become W + rate out; `seen` has room for 32 numbers of each, or is 0 where
   a step of one matrix is all that `after` has of it beside `before`. */
typedef struct {
    double rate;
    const double *V, *before;
    double *seen, *after;
    int spoiled; /* whether some number of it is not finite */
} Moves;

/* Half the squared distance of R z x^T from y^T, or of z from y where x is 0, times a weight where there is one. Members have
   targets and weights that lie `apart` and `farther`. */
typedef struct {
    const double *x, *y, *R, *weight;
    int rows, outputs;
    long apart, farther;
} Squares;

static inline Squares of_member(const Squares *all, long k) {
    Squares own = *all;
    own.y += k * all->apart;
    if (own.weight) own.weight += k * all->farther;
    return own;
}

/* Products C = A B of `count` matrices in two axes of a batch, of which the second has `inner`. What is read lies so many numbers
   apart along each of them, its rows and its columns. */
typedef struct {
    const double *at;
    long outer, inner, row, column;
} Laid;
typedef struct {
    Laid A, B;
    double *C;
    long inner, count;
} Products;

/* The law between neighbours, `count` pairs of members with L layers: L (S_k+1 - S_k) + W_k+1^T W_k+1 - W_k W_k^T, S = W + W^T, or
   instead of the products the `mean` of W^T W - W W^T of both. */
typedef struct {
    const double *W;
    double *law;
    long L, count;
    int mean;
} Neighbours;

/* The kernel of the closed flow of L layers: their shifts, those of the next state `apart` from there. */
typedef struct {
    const double *shifts;
    long L, apart;
    double scale;
} Layers;

/* LAPACK of SciPy, given by the caller. */
typedef const int *Size;
typedef void Syevd(const char *, const char *, Size, double *, Size, double *, double *, Size, int *, Size, int *);
typedef void Getrf(Size, Size, double *, Size, int *, int *);
typedef void Getrs(const char *, Size, Size, const double *, Size, const int *, double *, Size, int *);
typedef struct {
    Syevd *syevd;
    Getrf *getrf;
    Getrs *getrs;
} Lapack;

/* A run by differentiation formulas at its last accepted step, and how far the step that is tried has come. What is of an
   order is at its place: gamma, alpha and errors (ORDERS + 1). D has the backward differences, (ORDERS + 3, n). */
enum { ORDERS = 5 };
enum { BAIL, SLOW, DONE }; /* how an iteration ends */
typedef struct {
    Squares loss;
    int d, order, equal, linear, factored, degree, sweeps;
    long n, evaluations, products, most;
    double t, end, size, length, contraction, rtol, atol, local, newton, worth, longer, shorter, safety, round_off;
    const double *gamma, *alpha, *errors;
    double *D, *polynomial, *weight, *predicted, *history, *change, *kept, *room;
} Ndf;

/* The parts of a member are the panels of a flow, or the segments of a chain of L layers. */
typedef struct {
    int d, ld, m, pairs, odd, both, beside, rows, cuts, threads, failed, rule, turned, rooms;
    long members, parts, n, L, length, room_size;
    double alpha;
    const double *W, *G;
    double *c, *X, *ends, *middle, *products, *outer, *kept, *units, *room, *z, *out;
    float *cf;
    int *terms;
    Moves *moves; /* of a backward pass that is to take them, or 0 */
    void *task;   /* of a step that is no pass over W */
} Work;

#define MIXED(w) ((w)->ld % 8 == 0) /* vectors of float fit into the rows */
#define FIRST(w, t) ((t) / (w)->parts * (w)->L + (t) % (w)->parts * (w)->length)
#define LAST(w, t) ((t) % (w)->parts == (w)->parts - 1 ? ((t) / (w)->parts + 1) * (w)->L : FIRST(w, t) + (w)->length)
