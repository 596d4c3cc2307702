/* Counting inside a model: nodes for ONNX Runtime that find the bounds of a tensor, or count it, as soon as it is made.
 *
 * Its wheels bring no C headers, so the part of its interface that is used is declared here: a table of functions and a
 * struct that describes an operator. Both are only ever added to at their ends, by versions that are asked for.
 */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "counting.h"

#define DOMAIN "onnxq"
#define VERSION 16 /* of the interface; the first in which a node can fail */
#define PIECE (1 << 30) /* values that are counted at once, which add_counts must be able to hold */
#define CHUNK 1024

#if defined(_WIN32)
#define EXPORTED __declspec(dllexport)
#elif defined(__GNUC__)
#define EXPORTED __attribute__((visibility("default")))
#else
#define EXPORTED
#endif

typedef void Status; /* NULL where all went well; whoever gets another gives it on */
typedef void Opaque;
typedef void (*Function)(void);

typedef struct {
    const Function *(*get_api)(uint32_t version);
    const char *(*get_version)(void);
} ApiBase;

enum { /* places in the table of functions */
    CREATE_DOMAIN = 26,
    ADD_OPERATOR = 27,
    ADD_DOMAIN = 28,
    GET_DATA = 51,
    GET_COUNT = 64,
    GET_SHAPE = 65,
    GET_INPUT = 90,
    GET_OUTPUT = 91,
    RELEASE_SHAPE = 99
};

enum { FLOAT = 1, INT64 = 7, DOUBLE = 11 };

typedef struct Operator {
    uint32_t version;
    void *(*create)(const struct Operator *, const Function *, const Opaque *);
    const char *(*name)(const struct Operator *);
    const char *(*provider)(const struct Operator *);
    int (*input_type)(const struct Operator *, size_t);
    size_t (*inputs)(const struct Operator *);
    int (*output_type)(const struct Operator *, size_t);
    size_t (*outputs)(const struct Operator *);
    void (*compute)(void *, Opaque *);
    void (*destroy)(void *);
    int (*input_kind)(const struct Operator *, size_t);
    int (*output_kind)(const struct Operator *, size_t);
    int (*input_memory)(const struct Operator *, size_t);
    int (*arity[4])(const struct Operator *);
    Status *(*try_create)(const struct Operator *, const Function *, const Opaque *, void **);
    Status *(*try_compute)(void *, Opaque *);
} Operator;

static const Function *api;

static Status *get_values(Opaque *context, const float **values, size_t *size)
{
    Opaque *input, *shape;
    Status *failed = ((Status * (*)(Opaque *, size_t, Opaque **)) api[GET_INPUT])(context, 0, &input);
    if (failed || (failed = ((Status * (*)(Opaque *, Opaque **)) api[GET_SHAPE])(input, &shape)))
        return failed;
    failed = ((Status * (*)(Opaque *, size_t *)) api[GET_COUNT])(shape, size);
    ((void (*)(Opaque *))api[RELEASE_SHAPE])(shape);
    return failed ? failed : ((Status * (*)(Opaque *, void **)) api[GET_DATA])(input, (void **)values);
}

static Status *make_output(Opaque *context, size_t index, int64_t size, void **data)
{
    Opaque *output;
    Status *failed = ((Status * (*)(Opaque *, size_t, const int64_t *, size_t, Opaque **)) api[GET_OUTPUT])(context, index, &size, 1, &output);
    return failed ? failed : ((Status * (*)(Opaque *, void **)) api[GET_DATA])(output, data);
}

static int is_finite(float value) { return value - value == 0; }

/* found: least and largest finite value (inf and -inf where there are none), how many are NaN, inf, -inf. */
static void look(const float *values, size_t size, double *found)
{
    int32_t low, high;
    float least, most;
    onnxq_find_bounds((const int32_t *)values, (ptrdiff_t)size, &low, &high);
    found[2] = found[3] = found[4] = 0;
    if (onnxq_as_finite(low, high, &least, &most)) {
        found[0] = least + 0.0; /* so that a bound of -0.0 is 0.0, whichever zero came first */
        found[1] = most + 0.0;
        return;
    }
    int32_t infinite = 0x7f800000;
    float infinity;
    memcpy(&infinity, &infinite, sizeof infinity);
    found[0] = infinity;
    found[1] = -infinity;
    for (size_t i = 0; i < size; i++) {
        double value = values[i];
        if (is_finite(values[i])) {
            found[0] = value < found[0] ? value + 0.0 : found[0];
            found[1] = value > found[1] ? value + 0.0 : found[1];
        } else {
            found[value != value ? 2 : value > 0 ? 3 : 4]++;
        }
    }
}

/* 2**exponent, for exponents of normal doubles. */
static double power_of_two(int exponent)
{
    uint64_t bits = (uint64_t)(exponent + 1023) << 52;
    double power;
    memcpy(&power, &bits, sizeof power);
    return power;
}

/* The smallest integer with value < 2**exponent, for floats above 0: they are normal doubles. */
static int exponent_of(double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return (int)(bits >> 52 & 0x7ff) - 1022;
}

/* Counts of the finite values; returns how many zeros. */
static int64_t count_finite(const float *values, size_t size, int all, double factor, int64_t *sides)
{
    float kept[CHUNK];
    int64_t zeros = 0;
    for (size_t done = 0; all && done < size; done += PIECE)
        zeros += onnxq_add_counts(values + done, size - done < PIECE ? (ptrdiff_t)(size - done) : PIECE, factor, sides);
    for (size_t i = 0; !all && i < size;) {
        int count = 0;
        for (; i < size && count < CHUNK; i++)
            if (is_finite(values[i]))
                kept[count++] = values[i];
        zeros += onnxq_add_counts(kept, count, factor, sides);
    }
    return zeros;
}

static Status *compute_bounds(void *kernel, Opaque *context)
{
    const float *values;
    double *found;
    size_t size;
    Status *failed;
    (void)kernel;
    if ((failed = get_values(context, &values, &size)) || (failed = make_output(context, 0, 5, (void **)&found)))
        return failed;
    look(values, size, found);
    return NULL;
}

/* found: as of bounds, then how many are zero, and the exponent of the range that the bins are of. */
static Status *compute_counts(void *kernel, Opaque *context)
{
    const float *values;
    double *found, largest;
    int64_t *sides;
    size_t size;
    Status *failed;
    (void)kernel;
    if ((failed = get_values(context, &values, &size)) || (failed = make_output(context, 0, 7, (void **)&found)) ||
        (failed = make_output(context, 1, 2 * BINS, (void **)&sides)))
        return failed;
    look(values, size, found);
    largest = found[0] > found[1] ? 0 : -found[0] > found[1] ? -found[0] : found[1];
    found[6] = largest > 0 ? exponent_of(largest) : -1074;
    double factor = power_of_two(12 - (found[6] < -148 ? -148 : (int)found[6]));
    memset(sides, 0, 2 * BINS * sizeof *sides);
    found[5] = (double)count_finite(values, size, found[2] + found[3] + found[4] == 0, factor, sides);
    return NULL;
}

static Status *create(const Operator *operator, const Function *functions, const Opaque *info, void **kernel)
{
    (void)functions, (void)info;
    *kernel = (void *)operator; /* it keeps nothing */
    return NULL;
}
static void destroy(void *kernel) { (void)kernel; }
static const char *name_bounds(const Operator *operator) { return (void)operator, "Bounds"; }
static const char *name_counts(const Operator *operator) { return (void)operator, "Counts"; }
static const char *on_cpu(const Operator *operator) { return (void)operator, NULL; }
static size_t one(const Operator *operator) { return (void)operator, 1; }
static size_t two(const Operator *operator) { return (void)operator, 2; }
static int zero(const Operator *operator) { return (void)operator, 0; }
static int input_type(const Operator *operator, size_t index) { return (void)operator, (void)index, FLOAT; }
static int output_type(const Operator *operator, size_t index) { return (void)operator, index ? INT64 : DOUBLE; }
static int required(const Operator *operator, size_t index) { return (void)operator, (void)index, 0; }

#define OPERATOR(name, outputs, compute) \
    {VERSION, NULL, name, on_cpu, input_type, one, output_type, outputs, NULL, destroy, required, required, required, {zero, zero, zero, zero}, create, compute}

static const Operator operators[] = {OPERATOR(name_bounds, one, compute_bounds), OPERATOR(name_counts, two, compute_counts)};

EXPORTED Status *RegisterCustomOps(Opaque *options, const ApiBase *base)
{
    Opaque *domain;
    Status *failed;
    api = base->get_api(VERSION);
    if (!api)
        return NULL; /* an ONNX Runtime before this version: it will not know the nodes */
    if ((failed = ((Status * (*)(const char *, Opaque **)) api[CREATE_DOMAIN])(DOMAIN, &domain)))
        return failed;
    for (size_t i = 0; i < sizeof operators / sizeof *operators; i++)
        if ((failed = ((Status * (*)(Opaque *, const Operator *)) api[ADD_OPERATOR])(domain, operators + i)))
            return failed;
    return ((Status * (*)(Opaque *, Opaque *)) api[ADD_DOMAIN])(options, domain);
}
