/* The product of two matrices of numbers of type REAL. */

typedef REAL R(full) __attribute__((vector_size(BYTES), aligned(sizeof(REAL)), may_alias));
typedef REAL R(part) __attribute__((vector_size(BYTES / 2), aligned(sizeof(REAL)), may_alias));

/* C = S + alpha A B for some rows and the columns of some vectors; A is read by numbers, with any strides. */
#define TILE(name, vector, ROWS, COLUMNS)                                                                              \
    INLINE void name(int k, const REAL *A, long ar, long ak, const REAL *B, REAL alpha, const REAL *S, REAL *C, int ld) { \
        enum { WIDE = sizeof(vector) / sizeof(REAL) };                                                                 \
        vector acc[ROWS][COLUMNS] = {{{0}}};                                                                           \
        for (int j = 0; j < k; j++) {                                                                                  \
            vector b[COLUMNS];                                                                                         \
            UNROLL for (int c = 0; c < COLUMNS; c++) b[c] = *(const vector *)(B + (long)j * ld + c * WIDE);            \
            UNROLL for (int r = 0; r < ROWS; r++) UNROLL for (int c = 0; c < COLUMNS; c++)                             \
                acc[r][c] += A[r * ar + j * ak] * b[c];                                                                \
        }                                                                                                              \
        UNROLL for (int r = 0; r < ROWS; r++) UNROLL for (int c = 0; c < COLUMNS; c++)                                 \
            *(vector *)(C + r * ld + c * WIDE) =                                                                       \
                S ? *(const vector *)(S + r * ld + c * WIDE) + alpha * acc[r][c] : alpha * acc[r][c];                  \
    }
TILE(R(full8), R(full), 8, 1)
TILE(R(full4), R(full), 4, 1)
#if BYTES == 64
#define TALL 8 /* rows of what is more than a vector wide */
TILE(R(part8), R(part), 8, 1)
TILE(R(part4), R(part), 4, 1)
TILE(R(two8), R(full), 8, 2)
TILE(R(three8), R(full), 8, 3)
#else
#define TALL 4
#endif
TILE(R(two4), R(full), 4, 2)
TILE(R(three4), R(full), 4, 3)
#undef TILE

#if BYTES == 64
/* The same for 6 rows and 12 columns of double. */
INLINE void R(six)(int k, const REAL *A, long ar, long ak, const REAL *B, REAL alpha, const REAL *S, REAL *C) {
    enum { WIDE = BYTES / sizeof(REAL), LD = 12 };
    R(full) acc[6] = {{0}};
    R(part) rest[6] = {{0}};
    for (int j = 0; j < k; j++) {
        R(full) b = *(const R(full) *)(B + j * LD);
        R(part) c = *(const R(part) *)(B + j * LD + WIDE);
        UNROLL for (int r = 0; r < 6; r++) acc[r] += A[r * ar + j * ak] * b, rest[r] += A[r * ar + j * ak] * c;
    }
    UNROLL for (int r = 0; r < 6; r++) {
        R(full) *to = (R(full) *)(C + r * LD);
        R(part) *more = (R(part) *)(C + r * LD + WIDE);
        *to = S ? *(const R(full) *)(S + r * LD) + alpha * acc[r] : alpha * acc[r];
        *more = S ? *(const R(part) *)(S + r * LD + WIDE) + alpha * rest[r] : alpha * rest[r];
    }
}
#endif

/* C = S + alpha A B for matrices of 4 x 4. */
INLINE void R(small)(const REAL *A, long ar, long ak, const REAL *B, REAL alpha, const REAL *S, REAL *C) {
    typedef REAL row __attribute__((vector_size(4 * sizeof(REAL)), aligned(sizeof(REAL)), may_alias));
    row acc[4] = {{0}};
    UNROLL for (int j = 0; j < 4; j++) {
        const row b = *(const row *)(B + 4 * j);
        UNROLL for (int r = 0; r < 4; r++) acc[r] += A[r * ar + j * ak] * b;
    }
    UNROLL for (int r = 0; r < 4; r++)
        *(row *)(C + 4 * r) = S ? *(const row *)(S + 4 * r) + alpha * acc[r] : alpha * acc[r];
}

/* C = S + alpha A B for some rows of A, S and C; ld and they are multiples of 4, of 8 for float. S may be C or NULL, A
   and B may not be C. */
static void R(large)(int rows, int ld, int d, const REAL *A, long ar, long ak, const REAL *B, REAL alpha, const REAL *S, REAL *C) {
    const int wide = BYTES / sizeof(REAL);
#if BYTES == 64
    if (rows == 8 && ld == 8 && wide == 8) {
        R(full8)(d, A, ar, ak, B, alpha, S, C, 8);
        return;
    }
    if (rows == 12 && ld == 12 && wide == 8) {
        R(six)(d, A, ar, ak, B, alpha, S, C);
        R(six)(d, A + 6 * ar, ar, ak, B, alpha, S ? S + 6 * 12 : 0, C + 6 * 12);
        return;
    }
#endif
    /* The more vectors share a number of A the better, as far as there are registers: 16, or 32 with AVX-512. */
#define ALONG(ROWS, NAME) for (int i = 0; i < rows; i += ROWS)                                                         \
        (i + ROWS <= rows ? R(CAT(NAME, ROWS)) : R(CAT(NAME, 4)))(d, A + i * ar, ar, ak, B + j, alpha,                 \
                                                                 S ? S + i * ld + j : 0, C + i * ld + j, ld)
    for (int j = 0; j < ld;) {
        const int left = (ld - j) / wide;
        if (left > 2 && left != 4) {
            ALONG(TALL, three);
            j += 3 * wide;
        } else if (left > 1) {
            ALONG(TALL, two);
            j += 2 * wide;
        } else if (left) {
            ALONG(8, full);
            j += wide;
        } else {
#if BYTES == 64
            ALONG(8, part);
#endif
            break;
        }
    }
#undef ALONG
#undef TALL
}

INLINE void R(product)(int rows, int ld, int d, const REAL *A, long ar, long ak, const REAL *B, REAL alpha, const REAL *S, REAL *C) {
    if (d == 4 && rows == 4)
        R(small)(A, ar, ak, B, alpha, S, C);
    else
        R(large)(rows, ld, d, A, ar, ak, B, alpha, S, C);
}
