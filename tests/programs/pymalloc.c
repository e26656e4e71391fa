// A pool in the manner of CPython's object allocator: exported functions jump through a table in memory to those that do the work. Blocks
// of up to 512 bytes come from pools; larger ones are passed on to malloc, and count once. With INLINED the code of the function that the
// table usually has is in its callers, as a compiler does that knows the program from a test run.
#include <sys/mman.h>

#include "protocol.h"

enum { SMALLEST = 16, LARGEST = 512, ARENA = 1 << 20, SMALL = 3000, LARGE = 50, FREED = 2000 };

struct free_block {
    struct free_block *next;
};

static struct free_block *free_blocks[LARGEST / SMALLEST + 1];
static unsigned char *arenas, *fresh, *fresh_end;

static int is_in_pool(void *block) {
    return (unsigned char *)block >= arenas && (unsigned char *)block < arenas + 16 * ARENA;
}

static size_t class_of(size_t size) { return size == 0 ? 1 : (size + SMALLEST - 1) / SMALLEST; }

// The class is in front of each block, as in no real pool, so that a release finds it.
static inline __attribute__((always_inline)) void *pool_malloc(size_t size) {
    if (size > LARGEST) return malloc(size);
    size_t class = class_of(size);
    struct free_block *block = free_blocks[class];
    if (block) {
        free_blocks[class] = block->next;
        return block;
    }
    size_t bytes = SMALLEST + class * SMALLEST;
    if (fresh + bytes > fresh_end) abort();
    *(size_t *)fresh = class;
    fresh += bytes;
    return fresh - bytes + SMALLEST;
}

static inline __attribute__((always_inline)) void pool_free(void *block) {
    if (!block) return;
    if (!is_in_pool(block)) return free(block);
    size_t class = *(size_t *)((unsigned char *)block - SMALLEST);
    ((struct free_block *)block)->next = free_blocks[class];
    free_blocks[class] = block;
}

static inline __attribute__((always_inline)) void *pool_calloc(size_t count, size_t size) {
    void *volatile block = pool_malloc(count * size);
    return block ? memset(block, 0, count * size) : NULL;
}

static inline __attribute__((always_inline)) void *pool_realloc(void *old, size_t size) {
    if (old && !is_in_pool(old)) return realloc(old, size);
    void *volatile block = pool_malloc(size);
    if (!old || !block) return block;
    size_t had = *(size_t *)((unsigned char *)old - SMALLEST) * SMALLEST;
    memcpy(block, old, had < size ? had : size);
    pool_free(old);
    return block;
}

// Some bytes of filling before each, which a linker may or may not leave.
#define POOL CALLER __attribute__((patchable_function_entry(3, 3))) static

POOL void *_PyObject_Malloc(void *context, size_t size) {
    (void)context;
    return pool_malloc(size);
}

POOL void _PyObject_Free(void *context, void *block) {
    (void)context;
    pool_free(block);
}

POOL void *_PyObject_Calloc(void *context, size_t count, size_t size) {
    (void)context;
    return pool_calloc(count, size);
}

POOL void *_PyObject_Realloc(void *context, void *old, size_t size) {
    (void)context;
    return pool_realloc(old, size);
}

struct allocator {
    void *context;
    void *(*malloc)(void *, size_t);
    void *(*calloc)(void *, size_t, size_t);
    void *(*realloc)(void *, void *, size_t);
    void (*free)(void *, void *);
};

static struct allocator objects = {NULL, _PyObject_Malloc, _PyObject_Calloc, _PyObject_Realloc, _PyObject_Free};

// Somebody may put another one there, so no compiler knows what is in it.
CALLER void PyMem_SetAllocator(const struct allocator *other) { objects = *other; }

#ifdef INLINED
#define CALL(function, code, ...) (objects.function == code##_function ? code(__VA_ARGS__) : objects.function(objects.context, __VA_ARGS__))
#define pool_malloc_function _PyObject_Malloc
#define pool_calloc_function _PyObject_Calloc
#define pool_realloc_function _PyObject_Realloc
#define pool_free_function _PyObject_Free
#else
#define CALL(function, code, ...) objects.function(objects.context, __VA_ARGS__)
#endif

CALLER void *PyObject_Malloc(size_t size) { return size > (size_t)-1 / 2 ? NULL : CALL(malloc, pool_malloc, size); }
CALLER void *PyObject_Calloc(size_t count, size_t size) { return CALL(calloc, pool_calloc, count, size); }
CALLER void *PyObject_Realloc(void *old, size_t size) { return CALL(realloc, pool_realloc, old, size); }
CALLER void PyObject_Free(void *block) { CALL(free, pool_free, block); }

CALLER static void leak_small(void) {
    for (int i = 0; i < SMALL; i++) KEEP(PyObject_Malloc(120));
}

CALLER static void leak_large(void) {
    for (int i = 0; i < LARGE; i++) KEEP(PyObject_Calloc(4, 1000));
}

CALLER static void come_and_go(void) {
    for (int i = 0; i < FREED; i++) {
        // From the pool to malloc.
        void *block = PyObject_Realloc(PyObject_Malloc(100), 1000);
        KEEP(block);
        PyObject_Free(block);
    }
}

int main(void) {
    arenas = mmap(NULL, 16 * ARENA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (arenas == MAP_FAILED) return 1;
    fresh = arenas;
    fresh_end = arenas + 16 * ARENA;
    PyMem_SetAllocator(&objects);
    come_and_go();
    expect_native("leak_small", "_PyObject_Malloc", SMALL, 120);
    expect_native("leak_large", "_PyObject_Calloc", LARGE, 4000);
    // The old block and the new one. The new one is passed on to free, which does not know it any more.
    expect_freed(2 * FREED, FREED * (100 + 1000));
    expect_unmatched(FREED);
    ready();
    leak_small();
    leak_large();
    come_and_go();
    done();
}
