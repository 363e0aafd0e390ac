/* The operations between matrix products when subnets are evaluated on a CPU; growtas/nn/evaluation/kernels.py documents them.

   Callers pass addresses of contiguous float32 numbers. The GIL is released while a kernel runs. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

/* Number of queries whose weights are computed together: with a few hundred keys, these weights fit in the cache. */
#define QUERIES 48

/* Sums of powers of two with larger exponents could exceed the range of float. */
#define LARGE 90.0f

struct attention {
    const float *qkv, *query_bias, *key_tables, *value_tables, *lines_of_keys, *lines_of_values;
    float *out;
    long images, tokens, heads, head_dim, lines, images_at_once;
};

#if defined(__x86_64__)

#define NAME(x) x##_avx512
#define TARGET __attribute__((target("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma")))
#define LANES 16
#define WIDE 2
#include "_kernels.inc"
#undef NAME
#undef TARGET
#undef LANES
#undef WIDE

#define NAME(x) x##_avx2
#define TARGET __attribute__((target("avx2,fma")))
#define LANES 8
#define WIDE 2
#include "_kernels.inc"
#undef NAME
#undef TARGET
#undef LANES
#undef WIDE

#endif

#define NAME(x) x##_plain
#define TARGET
#define LANES 4
#define WIDE 2
#include "_kernels.inc"
#undef NAME
#undef TARGET
#undef LANES
#undef WIDE

static struct {
    const char *name;
    void (*attend)(const struct attention *, float *);
    void (*bias_gelu)(float *, const float *, long, long);
    void (*layer_norm)(const float *, float *, const float *, const float *, long, long, float);
} sets[] = {
#if defined(__x86_64__)
    {"avx512", attend_avx512, bias_gelu_avx512, layer_norm_avx512},
    {"avx2", attend_avx2, bias_gelu_avx2, layer_norm_avx2},
#endif
    {"plain", attend_plain, bias_gelu_plain, layer_norm_plain},
}, *chosen;

static int supported(const char *name) {
#if defined(__x86_64__)
    if (!strcmp(name, "avx512"))
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("fma");
    if (!strcmp(name, "avx2")) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#endif
    return !strcmp(name, "plain");
}

#define ADDRESS(x) ((void *)(Py_uintptr_t)(x))

static PyObject *attend(PyObject *self, PyObject *args) {
    unsigned long long qkv, query_bias, key_tables, value_tables, lines_of_keys, lines_of_values, out;
    struct attention a;
    (void)self;
    if (!PyArg_ParseTuple(
            args, "KKKKKKKllllll", &qkv, &query_bias, &key_tables, &value_tables, &lines_of_keys, &lines_of_values, &out, &a.images,
            &a.tokens, &a.heads, &a.head_dim, &a.lines, &a.images_at_once
        ))
        return NULL;
    a.qkv = ADDRESS(qkv), a.query_bias = ADDRESS(query_bias), a.key_tables = ADDRESS(key_tables);
    a.value_tables = ADDRESS(value_tables), a.lines_of_keys = ADDRESS(lines_of_keys);
    a.lines_of_values = ADDRESS(lines_of_values), a.out = ADDRESS(out);
    const size_t wide = a.head_dim + a.lines, keys = (a.tokens + 15) / 16 * 16;
    const size_t count = a.heads * a.images_at_once * a.tokens * wide + wide * keys + a.tokens * wide + QUERIES * keys;
    float *scratch = calloc(count, sizeof(float));
    if (scratch == NULL) return PyErr_NoMemory();
    Py_BEGIN_ALLOW_THREADS
    chosen->attend(&a, scratch);
    Py_END_ALLOW_THREADS
    free(scratch);
    Py_RETURN_NONE;
}

static PyObject *bias_gelu(PyObject *self, PyObject *args) {
    unsigned long long x, bias;
    long rows, columns;
    (void)self;
    if (!PyArg_ParseTuple(args, "KKll", &x, &bias, &rows, &columns)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    chosen->bias_gelu(ADDRESS(x), ADDRESS(bias), rows, columns);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *layer_norm(PyObject *self, PyObject *args) {
    unsigned long long x, out, weight, bias;
    long rows, columns;
    float eps;
    (void)self;
    if (!PyArg_ParseTuple(args, "KKKKllf", &x, &out, &weight, &bias, &rows, &columns, &eps)) return NULL;
    Py_BEGIN_ALLOW_THREADS
    chosen->layer_norm(ADDRESS(x), ADDRESS(out), ADDRESS(weight), ADDRESS(bias), rows, columns, eps);
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

static PyObject *instructions(PyObject *self, PyObject *args) {
    const char *name = NULL;
    (void)self;
    if (!PyArg_ParseTuple(args, "|s", &name)) return NULL;
    if (name != NULL) {
        size_t i = 0, count = sizeof sets / sizeof *sets;
        while (i < count && strcmp(sets[i].name, name)) i++;
        if (i == count || !supported(name)) {
            PyErr_Format(PyExc_ValueError, "this CPU or build has no kernels for %s", name);
            return NULL;
        }
        chosen = &sets[i];
    }
    return PyUnicode_FromString(chosen->name);
}

static PyMethodDef methods[] = {
    {"attend", attend, METH_VARARGS, "Attention of some heads; arguments as in growtas/nn/evaluation/kernels.py."},
    {"bias_gelu", bias_gelu, METH_VARARGS, "x = gelu(x + bias), in place: address of x, of bias, rows, columns."},
    {"layer_norm", layer_norm, METH_VARARGS, "Layer norm: addresses of x, out, weight, bias; rows, columns, eps."},
    {"instructions", instructions, METH_VARARGS, "The set of instructions in use: avx512, avx2 or plain; with a name, use that one."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, "_kernels", NULL, -1, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__kernels(void) {
#if defined(__x86_64__)
    __builtin_cpu_init();
#endif
    chosen = sets;
    while (!supported(chosen->name)) chosen++;
    return PyModule_Create(&module);
}
