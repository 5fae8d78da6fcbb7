/* Everything that is compiled for each instruction set, TARGET, with vectors of BYTES bytes. */

#define REAL double
#define BITS int64_t
#include "product.h"
#include "sweeps.h"
#undef REAL
#undef BITS
#define REAL float
#define BITS int32_t
#include "product.h"
#include "sweeps.h"
#undef REAL
#undef BITS
#define ROWS CAT(productdouble, TARGET)
#define PRODUCT(ld, ...) ROWS(ld, ld, __VA_ARGS__)
#define INTEGRAL CAT(integraldouble, TARGET)
#include "grams.h"
#include "parts.h"
#include "neighbours.h"
#include "columns.h"
#include "flow.h"
#include "chain.h"
#define LANES 4
#define LAYOUT _four
#include "lanes.h"
#undef LANES
#undef LAYOUT
#if BYTES == 64
#define LANES 8
#define LAYOUT _eight
#include "lanes.h"
#undef LANES
#undef LAYOUT
#endif
#include "stages.h"
#include "polar.h"
#include "ndf.h"
#include "divided.h"
#undef ROWS
#undef PRODUCT
#undef INTEGRAL
#undef TARGET
#undef BYTES
