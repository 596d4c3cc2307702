/* What counting.c does to values, for nodes.c too. */

#ifndef ONNXQ_COUNTING_H
#define ONNXQ_COUNTING_H

#include <stddef.h>
#include <stdint.h>

#define BINS 4096

/* The smallest and the largest value, as bits that order as the floats do; low > high where there are none. */
void onnxq_find_bounds(const int32_t *bits, ptrdiff_t size, int32_t *low, int32_t *high);

/* Whether what find_bounds found is of at least one value, and all are finite: then also the two as floats. */
int onnxq_as_finite(int32_t low, int32_t high, float *least, float *most);

/* Add one to sides[x < 0][floor(|x| * factor)] for each x but zeros; return how many these are. Values are finite, fewer
 * than 2**32, and every product is below BINS. */
int64_t onnxq_add_counts(const float *values, ptrdiff_t size, double factor, int64_t *sides);

#endif
