/* What calibration does to every value, compiled: bounds, and counts in the bins of a histogram's two sides.
 *
 * nodes.c does the same to tensors inside a model.
 * The numpy forms of the same two functions, which serve where this was not built, are in onnxq/counting.py; both give
 * the same bits. Neither function holds the interpreter's lock while it works.
 */

#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdint.h>
#include <string.h>

#include "counting.h"

#define PARKED 16 /* slots for zeros: a counter that is hit twice in a row waits for itself */
#define LANES 2   /* likewise for the bins */
#define SLOTS (2 * BINS + PARKED)
#define CHUNK 1024
#define SMALL 8192 /* values below which lanes cost more than they save */

#if defined(__GNUC__) && !defined(__clang__) && defined(__x86_64__) && defined(__linux__)
#define VECTORS __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define VECTORS
#endif

/* The bits of a float as an integer that orders as the floats do: -inf < ... < -0.0 < 0.0 < ... < inf, NaN outside. */
static inline int32_t ordered(int32_t bits) { return bits ^ ((bits >> 31) & INT32_MAX); }

VECTORS void onnxq_find_bounds(const int32_t *bits, ptrdiff_t size, int32_t *low, int32_t *high)
{
    int32_t least = INT32_MAX, most = INT32_MIN;
    for (ptrdiff_t i = 0; i < size; i++) {
        int32_t key = ordered(bits[i]);
        least = key < least ? key : least;
        most = key > most ? key : most;
    }
    *low = least;
    *high = most;
}

int onnxq_as_finite(int32_t low, int32_t high, float *least, float *most)
{
    const int32_t infinite = 0x7f800000;
    if (low > high || low <= ordered(infinite | INT32_MIN) || high >= infinite)
        return 0;
    low = ordered(low), high = ordered(high); /* its own inverse */
    memcpy(least, &low, sizeof *least);
    memcpy(most, &high, sizeof *most);
    return 1;
}

/* Slot of each value: bin of its side, or one of those for zeros. size is at most CHUNK. */
VECTORS static void find_slots(const float *values, int size, float factor, int32_t *slots)
{
    for (int i = 0; i < size; i++) {
        int32_t bits;
        memcpy(&bits, values + i, sizeof bits);
        int32_t size_bits = bits & INT32_MAX;
        float magnitude;
        memcpy(&magnitude, &size_bits, sizeof magnitude);
        int32_t bin = (int32_t)(magnitude * factor) & (BINS - 1); /* towards zero; the mask keeps a wrong factor in */
        int32_t none = -(size_bits == 0); /* all ones for a zero; arithmetic, as branches would not be vectors */
        bin += (bits >> 31) & BINS;
        slots[i] = (bin & ~none) | ((2 * BINS + (i & (PARKED - 1))) & none);
    }
}

/* The same with a factor that only a double can hold: where all values are below 2**-100. */
static void find_slots_wide(const float *values, int size, double factor, int32_t *slots)
{
    for (int i = 0; i < size; i++) {
        double value = values[i], magnitude = value < 0 ? -value : value;
        int32_t bin = ((int32_t)(magnitude * factor) & (BINS - 1)) + (value < 0 ? BINS : 0);
        slots[i] = value != 0 ? bin : 2 * BINS + (i & (PARKED - 1));
    }
}

int64_t onnxq_add_counts(const float *values, ptrdiff_t size, double factor, int64_t *sides)
{
    uint32_t lanes[LANES][SLOTS];
    int32_t slots[CHUNK];
    int narrow = factor < 1e38, lanes_used = size > SMALL;
    int64_t zeros = 0;
    if (lanes_used)
        memset(lanes, 0, sizeof lanes);
    for (ptrdiff_t done = 0; done < size; done += CHUNK) {
        int count = size - done < CHUNK ? (int)(size - done) : CHUNK, i = 0;
        if (narrow)
            find_slots(values + done, count, (float)factor, slots);
        else
            find_slots_wide(values + done, count, factor, slots);
        if (lanes_used) {
            for (; i + LANES <= count; i += LANES)
                for (int lane = 0; lane < LANES; lane++)
                    lanes[lane][slots[i + lane]]++;
            for (; i < count; i++)
                lanes[0][slots[i]]++;
        } else {
            for (; i < count; i++) {
                if (slots[i] < 2 * BINS)
                    sides[slots[i]]++;
                else
                    zeros++;
            }
        }
    }
    if (lanes_used) {
        for (int slot = 0; slot < 2 * BINS; slot++)
            for (int lane = 0; lane < LANES; lane++)
                sides[slot] += lanes[lane][slot];
        for (int slot = 2 * BINS; slot < SLOTS; slot++)
            for (int lane = 0; lane < LANES; lane++)
                zeros += lanes[lane][slot];
    }
    return zeros;
}

static int get_floats(PyObject *object, Py_buffer *view)
{
    if (PyObject_GetBuffer(object, view, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) < 0)
        return -1;
    if (view->itemsize == 4 && view->format && strcmp(view->format, "f") == 0)
        return 0;
    PyBuffer_Release(view);
    PyErr_SetString(PyExc_TypeError, "values must be contiguous float32");
    return -1;
}

static PyObject *bounds(PyObject *module, PyObject *object)
{
    Py_buffer view;
    int32_t low, high;
    float least, most;
    (void)module;
    if (get_floats(object, &view) < 0)
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    onnxq_find_bounds(view.buf, view.len / 4, &low, &high);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&view);
    if (!onnxq_as_finite(low, high, &least, &most))
        Py_RETURN_NONE;
    return Py_BuildValue("ff", least, most);
}

static PyObject *count(PyObject *module, PyObject *args)
{
    PyObject *object, *target;
    Py_buffer view, sides;
    double factor;
    int64_t zeros;
    (void)module;
    if (!PyArg_ParseTuple(args, "OdO:count", &object, &factor, &target) || get_floats(object, &view) < 0)
        return NULL;
    if (PyObject_GetBuffer(target, &sides, PyBUF_C_CONTIGUOUS | PyBUF_WRITABLE) < 0) {
        PyBuffer_Release(&view);
        return NULL;
    }
    if (sides.len != 2 * BINS * (Py_ssize_t)sizeof(int64_t) || view.len / 4 > UINT32_MAX) {
        PyErr_SetString(PyExc_ValueError, "sides must be int64[2, 4096], and values fewer than 2**32");
        PyBuffer_Release(&view);
        PyBuffer_Release(&sides);
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    zeros = onnxq_add_counts(view.buf, view.len / 4, factor, sides.buf);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&view);
    PyBuffer_Release(&sides);
    return PyLong_FromLongLong(zeros);
}

static PyMethodDef methods[] = {
    {"bounds", bounds, METH_O, "The smallest and the largest of contiguous float32 values; None unless all are finite."},
    {"count", count, METH_VARARGS,
     "(values, factor, sides): add one to sides[x < 0, floor(|x| * factor)] for each x but zeros; return how many these are.\n"
     "Every product must be below 4096."},
    {NULL, NULL, 0, NULL}};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "onnxq._counting", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__counting(void)
{
    PyObject *module = PyModule_Create(&definition);
    if (module && PyModule_AddIntConstant(module, "NODES", 1) < 0) /* nodes.c is in here too */
        Py_CLEAR(module);
    return module;
}
