/* Where blocks end and holes lie, found in one pass over the bytes of a file.
 *
 * The cut points are those of content-defined chunking with a gear hash, as FastCDC does it (Xia et al., "FastCDC: a
 * Fast and Efficient Content-Defined Chunking Approach for Data Deduplication", USENIX ATC 2016, sections 4.2 to 4.4):
 *
 *   hash   h = (h << 1) + gear[byte], modulo 2^64. A byte has left h after 64 more, so h depends on the last 64 bytes.
 *   cut    a block may end where the upper bits of h are zero. A bit sees as many bytes as lie below it: the upper ones
 *          see the most, and testing them is one comparison, h < 2^(64 - bits).
 *   skip   no cut before min_bytes; hashing starts 64 bytes before that, so that the first test sees a full window.
 *   normal log2(mean_bytes) + 2 bits before mean_bytes and log2(mean_bytes) - 2 from there on (normalization level 2)
 *          keep most lengths near the mean. At max_bytes the block ends whatever it holds.
 *
 * Hence where a block ends depends on its own bytes alone: on its length and, before max_bytes, on its last 64.
 *
 * A run of zero_bytes zeros ends the block where the run began and starts a hole, which lasts to the next byte that is
 * not zero. Where the byte that completes the run would also end the block, the hole comes first.
 *
 * tests/support/pure_cutter.py says the same in Python, a byte at a time; the tests hold the two together. Blocks are
 * named by their content, so any change here makes files that are saved again be stored again: a change is a new
 * format (the golden tests pin the cuts).
 */
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <structmember.h>

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { WINDOW_BYTES = 64, NORMALIZATION_BITS = 2, GEAR_ENTRIES = 256 };
enum { CUT = 0, HOLE = 1, DATA = 2 };

#define MAX_BLOCK_BYTES ((Py_ssize_t)1 << 31)
#define GEAR_SEED UINT64_C(0x73796e6365722e31) /* "syncer.1" */
#define NOT_FOUND SIZE_MAX
#define STEP_BYTES ((size_t)64 * 1024)       /* looked at for zeros, then hashed while it is in the processor's cache */
#define UNLOCKED_FROM_BYTES ((Py_ssize_t)4096) /* below this, letting other threads run costs more than the work */

static uint64_t gear[GEAR_ENTRIES]; /* the same in every interpreter, so one table serves all */

/* The first 256 numbers of splitmix64 (Steele, Lea and Flood, OOPSLA 2014) from GEAR_SEED. */
static void fill_gear(void)
{
    uint64_t state = GEAR_SEED;
    for (int i = 0; i < GEAR_ENTRIES; i++) {
        state += UINT64_C(0x9e3779b97f4a7c15);
        uint64_t mixed = state;
        mixed = (mixed ^ (mixed >> 30)) * UINT64_C(0xbf58476d1ce4e5b9);
        mixed = (mixed ^ (mixed >> 27)) * UINT64_C(0x94d049bb133111eb);
        gear[i] = mixed ^ (mixed >> 31);
    }
}

/* --- zeros ------------------------------------------------------------------------------------------------------ */

static inline uint64_t load_word(const uint8_t *at)
{
    uint64_t word;
    memcpy(&word, at, sizeof word);
    return word;
}

static inline uint64_t load_four(const uint8_t *at)
{
    return load_word(at) | load_word(at + 8) | load_word(at + 16) | load_word(at + 24);
}

/* The first index in [from, to) whose byte is not zero, or `to`. */
static size_t first_nonzero(const uint8_t *data, size_t from, size_t to)
{
    while (to - from >= 32 && load_four(data + from) == 0) {
        from += 32;
    }
    while (from < to && data[from] == 0) {
        from++;
    }
    return from;
}

/* One more than the last index in [from, to) whose byte is not zero, or `from`. */
static size_t after_last_nonzero(const uint8_t *data, size_t from, size_t to)
{
    while (to - from >= 32 && load_four(data + to - 32) == 0) {
        to -= 32;
    }
    while (to > from && data[to - 1] == 0) {
        to--;
    }
    return to;
}

/* The index after the byte of [from, to) that completes a run of `wanted` zeros, or NOT_FOUND.
 *
 * *run, less than `wanted`, is how many zeros stand right before `from`; when no run is complete it becomes how many
 * stand right before `to`. A run that would end at an index is looked at from its end: bytes that are not zero let
 * almost all of it be skipped, and no byte is looked at more than twice.
 */
static size_t find_zero_run(const uint8_t *data, size_t from, size_t to, size_t wanted, size_t *run)
{
    size_t have = *run;
    while (to - from >= wanted - have) {
        size_t end = from + (wanted - have);
        size_t start = after_last_nonzero(data, from, end);
        if (start == from) {
            return end;
        }
        from = start;
        have = 0;
    }
    size_t start = after_last_nonzero(data, from, to);
    *run = start == from ? have + (to - from) : to - start;
    return NOT_FOUND;
}

/* --- cut points ------------------------------------------------------------------------------------------------- */

/* Roll *hash over [from, to) up to and with the first byte that leaves it under `limit`.
 *
 * Returns the index after that byte, or NOT_FOUND when there is none. A limit of 0 only rolls.
 */
static size_t roll(const uint8_t *data, size_t from, size_t to, uint64_t limit, uint64_t *hash)
{
    uint64_t h = *hash;
#define ROLL(i)                                \
    h = (h << 1) + gear[data[from + (i)]];     \
    if (h < limit) {                           \
        *hash = h;                             \
        return from + (i) + 1;                 \
    }
    while (to - from >= 8) {
        ROLL(0) ROLL(1) ROLL(2) ROLL(3) ROLL(4) ROLL(5) ROLL(6) ROLL(7)
        from += 8;
    }
    while (from < to) {
        ROLL(0)
        from++;
    }
#undef ROLL
    *hash = h;
    return NOT_FOUND;
}

/* Everything known between two calls. INVARIANT: in a block, position < max_bytes and run < zero_bytes. */
typedef struct {
    size_t min_bytes, max_bytes, zero_bytes;
    size_t mean_bytes;
    uint64_t hard_limit, easy_limit; /* what the hash must be under before the mean, and from there on */
    int in_hole;
    size_t position; /* bytes since the block, or the hole, began */
    size_t run;      /* zeros at the end of the block so far */
    uint64_t hash;   /* of no meaning until position is min_bytes, when the block's last 64 bytes have filled it */
} Scan;

static void start_block(Scan *scan)
{
    scan->in_hole = 0;
    scan->position = 0;
    scan->run = 0;
}

/* Go on in the block over [from, to), which must not reach past max_bytes. Returns the index of the cut, or NOT_FOUND. */
static size_t find_cut(Scan *scan, const uint8_t *data, size_t from, size_t to)
{
    const size_t unhashed = scan->min_bytes - WINDOW_BYTES;
    if (scan->position < unhashed) {
        size_t skipped = unhashed - scan->position < to - from ? unhashed - scan->position : to - from;
        scan->position += skipped;
        from += skipped;
    }
    /* The byte after which the block is min_bytes long is the first that is tested, and so on: hence the "- 1". */
    const struct {
        size_t until;
        uint64_t limit;
    } stretches[] = {
        {scan->min_bytes - 1, 0},
        {scan->mean_bytes - 1, scan->hard_limit},
        {scan->max_bytes, scan->easy_limit},
    };
    for (int i = 0; i < 3; i++) {
        if (scan->position >= stretches[i].until) {
            continue;
        }
        size_t left = stretches[i].until - scan->position;
        size_t stop = left < to - from ? from + left : to;
        size_t cut = roll(data, from, stop, stretches[i].limit, &scan->hash);
        if (cut != NOT_FOUND) {
            return cut;
        }
        scan->position += stop - from;
        from = stop;
    }
    return scan->position == scan->max_bytes ? to : NOT_FOUND;
}

/* --- events ----------------------------------------------------------------------------------------------------- */

typedef struct {
    Py_ssize_t offset;
    int kind;
} Event;

typedef struct {
    Event *items;
    size_t count, room;
} Events;

/* Returns 0, or -1 when there is no memory. */
static int add_event(Events *events, Py_ssize_t offset, int kind)
{
    if (events->count == events->room) {
        size_t room = events->room == 0 ? 16 : events->room * 2;
        Event *items = realloc(events->items, room * sizeof *items);
        if (items == NULL) {
            return -1;
        }
        events->items = items;
        events->room = room;
    }
    events->items[events->count++] = (Event){offset, kind};
    return 0;
}

/* Go over all of the data. Touches no Python object. Returns 0, or -1 when there is no memory. */
static int scan_data(Scan *scan, const uint8_t *data, size_t length, Events *events)
{
    size_t at = 0;
    while (at < length) {
        if (scan->in_hole) {
            size_t next = first_nonzero(data, at, length);
            scan->position += next - at;
            at = next;
            if (at < length) {
                start_block(scan);
                if (add_event(events, (Py_ssize_t)at, DATA) < 0) {
                    return -1;
                }
            }
            continue;
        }
        size_t step = length - at < STEP_BYTES ? length - at : STEP_BYTES;
        if (step > scan->max_bytes - scan->position) {
            step = scan->max_bytes - scan->position;
        }
        size_t run = scan->run;
        size_t complete = find_zero_run(data, at, at + step, scan->zero_bytes, &run);
        /* The byte that completes a run is not hashed: the hole goes before a cut in the same place. */
        size_t cut = find_cut(scan, data, at, complete == NOT_FOUND ? at + step : complete - 1);
        if (cut != NOT_FOUND) {
            start_block(scan);
            at = cut;
            if (add_event(events, (Py_ssize_t)at, CUT) < 0) {
                return -1;
            }
        } else if (complete != NOT_FOUND) {
            scan->in_hole = 1;
            scan->position = scan->zero_bytes;
            at = complete;
            if (add_event(events, (Py_ssize_t)at - (Py_ssize_t)scan->zero_bytes, HOLE) < 0) {
                return -1;
            }
        } else {
            scan->run = run;
            at += step;
        }
    }
    return 0;
}

/* --- the Python type -------------------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    Scan scan;
    int busy; /* read and written with the GIL held: a feed is running, perhaps without it */
} Cutter;

static int refuse_when_busy(const Cutter *self)
{
    if (self->busy) {
        PyErr_SetString(PyExc_RuntimeError, "a Cutter is being fed by another thread");
        return -1;
    }
    return 0;
}

static int check_sizes(Py_ssize_t min_bytes, Py_ssize_t mean_bytes, Py_ssize_t max_bytes, Py_ssize_t zero_bytes)
{
    if (min_bytes < WINDOW_BYTES || mean_bytes < min_bytes || max_bytes < mean_bytes || max_bytes > MAX_BLOCK_BYTES) {
        PyErr_SetString(PyExc_ValueError, "sizes must be 64 <= min_bytes <= mean_bytes <= max_bytes <= 2**31");
        return -1;
    }
    if ((mean_bytes & (mean_bytes - 1)) != 0) {
        PyErr_SetString(PyExc_ValueError, "mean_bytes must be a power of two");
        return -1;
    }
    if (zero_bytes < 1 || zero_bytes > max_bytes) {
        PyErr_SetString(PyExc_ValueError, "zero_bytes must be 1 to max_bytes");
        return -1;
    }
    return 0;
}

/* All is set here and not in an initializer, so that no half-made Cutter can be had. */
static PyObject *Cutter_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"min_bytes", "mean_bytes", "max_bytes", "zero_bytes", NULL};
    Py_ssize_t min_bytes, mean_bytes, max_bytes, zero_bytes;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "nnnn:Cutter", names, &min_bytes, &mean_bytes, &max_bytes,
                                     &zero_bytes)
        || check_sizes(min_bytes, mean_bytes, max_bytes, zero_bytes) < 0) {
        return NULL;
    }
    int mean_bits = 0;
    while ((Py_ssize_t)1 << mean_bits < mean_bytes) {
        mean_bits++;
    }
    allocfunc allocate = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    Cutter *self = (Cutter *)allocate(type, 0);
    if (self == NULL) {
        return NULL;
    }
    self->scan = (Scan){
        .min_bytes = (size_t)min_bytes,
        .mean_bytes = (size_t)mean_bytes,
        .max_bytes = (size_t)max_bytes,
        .zero_bytes = (size_t)zero_bytes,
        .hard_limit = UINT64_C(1) << (64 - mean_bits - NORMALIZATION_BITS),
        .easy_limit = UINT64_C(1) << (64 - mean_bits + NORMALIZATION_BITS),
    };
    self->busy = 0;
    start_block(&self->scan);
    return (PyObject *)self;
}

static void Cutter_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    freefunc release = (freefunc)PyType_GetSlot(type, Py_tp_free);
    release(object);
    Py_DECREF(type);
}

static PyObject *list_of(const Events *events)
{
    PyObject *list = PyList_New((Py_ssize_t)events->count);
    for (size_t i = 0; list != NULL && i < events->count; i++) {
        PyObject *pair = Py_BuildValue("(ni)", events->items[i].offset, events->items[i].kind);
        if (pair == NULL || PyList_SetItem(list, (Py_ssize_t)i, pair) < 0) {
            Py_CLEAR(list);
        }
    }
    return list;
}

PyDoc_STRVAR(feed_doc,
             "feed($self, data, /)\n--\n\n"
             "Go over data and return its events in order, as (offset relative to the start of data, kind).");

static PyObject *Cutter_feed(PyObject *object, PyObject *data)
{
    Cutter *self = (Cutter *)object;
    Py_buffer view;
    if (refuse_when_busy(self) < 0 || PyObject_GetBuffer(data, &view, PyBUF_SIMPLE) < 0) {
        return NULL;
    }
    Events events = {NULL, 0, 0};
    Scan scan = self->scan; /* a copy, so that a call that fails has changed nothing */
    int outcome;
    self->busy = 1;
    if (view.len < UNLOCKED_FROM_BYTES) {
        outcome = scan_data(&scan, view.buf, (size_t)view.len, &events);
    } else {
        Py_BEGIN_ALLOW_THREADS
        outcome = scan_data(&scan, view.buf, (size_t)view.len, &events);
        Py_END_ALLOW_THREADS
    }
    PyObject *result = outcome < 0 ? PyErr_NoMemory() : list_of(&events);
    if (result != NULL) {
        self->scan = scan;
    }
    self->busy = 0;
    free(events.items);
    PyBuffer_Release(&view);
    return result;
}

PyDoc_STRVAR(reset_doc, "reset($self, /)\n--\n\nA new block starts with the next byte fed.");

static PyObject *Cutter_reset(PyObject *object, PyObject *Py_UNUSED(unused))
{
    Cutter *self = (Cutter *)object;
    if (refuse_when_busy(self) < 0) {
        return NULL;
    }
    start_block(&self->scan);
    Py_RETURN_NONE;
}

static PyObject *Cutter_position(PyObject *object, void *Py_UNUSED(closure))
{
    Cutter *self = (Cutter *)object;
    return refuse_when_busy(self) < 0 ? NULL : PyLong_FromSize_t(self->scan.position);
}

static PyMethodDef Cutter_methods[] = {
    {"feed", Cutter_feed, METH_O, feed_doc},
    {"reset", Cutter_reset, METH_NOARGS, reset_doc},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef Cutter_getset[] = {
    {"position", Cutter_position, NULL, "Bytes fed since the current block, or hole, started.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

PyDoc_STRVAR(Cutter_doc,
             "Cutter(min_bytes, mean_bytes, max_bytes, zero_bytes)\n--\n\n"
             "Finds where the blocks of one stream of bytes end and where holes lie.");

static PyType_Slot Cutter_slots[] = {
    {Py_tp_doc, (void *)Cutter_doc},
    {Py_tp_new, Cutter_new},
    {Py_tp_dealloc, Cutter_dealloc},
    {Py_tp_methods, Cutter_methods},
    {Py_tp_getset, Cutter_getset},
    {0, NULL},
};

static PyType_Spec Cutter_spec = {
    .name = "syncer.native._scan.Cutter",
    .basicsize = sizeof(Cutter),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = Cutter_slots,
};

static int exec_module(PyObject *module)
{
    fill_gear();
    PyObject *type = PyType_FromModuleAndSpec(module, &Cutter_spec, NULL);
    if (type == NULL) {
        return -1;
    }
    int outcome = PyModule_AddType(module, (PyTypeObject *)type);
    Py_DECREF(type);
    if (outcome < 0 || PyModule_AddIntConstant(module, "CUT", CUT) < 0
        || PyModule_AddIntConstant(module, "HOLE", HOLE) < 0 || PyModule_AddIntConstant(module, "DATA", DATA) < 0) {
        return -1;
    }
    return 0;
}

static PyModuleDef_Slot module_slots[] = {
    {Py_mod_exec, exec_module},
    {0, NULL},
};

static struct PyModuleDef module_def = {
    PyModuleDef_HEAD_INIT,
    .m_name = "syncer.native._scan",
    .m_doc = "Where blocks end and holes lie, found in one pass over the bytes of a file.",
    .m_slots = module_slots,
};

PyMODINIT_FUNC PyInit__scan(void)
{
    return PyModuleDef_Init(&module_def);
}
