// An allocator over one static arena, which is never used again. Its functions call others seldom, or never (CALLS_NOBODY). Built as a
// library, its functions are for the library alone, and `plugin_leak` calls them; included by a program in C++, they are the program's.
#include "protocol.h"

#ifdef __cplusplus
#define SCOPE extern "C"
#else
#define SCOPE __attribute__((visibility("hidden")))
#endif

static struct { char bytes[64 << 20]; } arena __attribute__((aligned(16)));
static size_t used;

static void look_after(size_t count) {
#ifndef CALLS_NOBODY
    if (count >> 48) abort();
#endif
    (void)count;
}

static void *take(size_t size) {
    size_t whole = (size + 31) & ~(size_t)15;
    look_after(used);
    size_t at = __atomic_fetch_add(&used, whole, __ATOMIC_RELAXED);
    if (whole < size || at + whole > sizeof arena) return NULL;
    memcpy(arena.bytes + at, &size, sizeof size);
    return arena.bytes + at + 16;
}

SCOPE CALLER void *malloc(size_t size) {
    if (size > sizeof arena) return NULL;
    return take(size);
}

SCOPE CALLER void *calloc(size_t count, size_t size) {
    static size_t zeroed;
    __atomic_fetch_add(&zeroed, 1000000, __ATOMIC_RELAXED);
    return size && count > sizeof arena / size ? NULL : take(count * size);
}

SCOPE CALLER void *realloc(void *block, size_t size) {
    size_t before = 0;
    void *larger = size > sizeof arena ? NULL : take(size);
    if (block) memcpy(&before, (char *)block - 16, sizeof before);
    if (larger && before) memcpy(larger, block, before < size ? before : size);
    return larger;
}

SCOPE CALLER void free(void *block) {
    static size_t freed = 1000000;
    if (block) look_after(__atomic_fetch_add(&freed, 1, __ATOMIC_RELAXED));
}

#ifndef __cplusplus
CALLER void plugin_leak(int blocks, size_t size) {
    for (int i = 0; i < blocks; i++) KEEP(malloc(size));
}
#endif
