// An allocator whose functions call each other through their public names, as many replacements do. Memory comes from
// one static arena and is never reused, so that it needs no other allocator.
//
// `own_allocator_interrupt`, when set, is called in the middle of malloc: it may leave and never come back.
#include <errno.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

void *memalign(size_t, size_t);

void (*volatile own_allocator_interrupt)(void);

enum { ARENA = 64 << 20, HEADER = 16 };

static _Alignas(4096) unsigned char arena[ARENA];
static atomic_size_t used;

static void *carve(size_t alignment, size_t size) {
    size_t room = size + HEADER + alignment;
    if (size > ARENA) return NULL;
    size_t from = atomic_fetch_add(&used, (room + 15) & ~(size_t)15);
    if (from + room > ARENA) return NULL;
    uintptr_t block = ((uintptr_t)arena + from + HEADER + alignment - 1) & ~(uintptr_t)(alignment - 1);
    ((size_t *)block)[-1] = size;
    return (void *)block;
}

void *malloc(size_t size) {
    if (own_allocator_interrupt) own_allocator_interrupt();
    return carve(16, size);
}

void free(void *block) { __asm__ volatile("" : : "r"(block) : "memory"); }

void *calloc(size_t count, size_t size) {
    size_t bytes;
    if (__builtin_mul_overflow(count, size, &bytes)) return NULL;
    void *volatile block = malloc(bytes);
    if (block) memset(block, 0, bytes);
    return block;
}

void *realloc(void *old, size_t size) {
    void *volatile block = malloc(size);
    if (!old || !block) return block;
    size_t had = ((size_t *)old)[-1];
    memcpy(block, old, had < size ? had : size);
    free(old);
    return block;
}

void *memalign(size_t alignment, size_t size) { return carve(alignment < 16 ? 16 : alignment, size); }

int posix_memalign(void **result, size_t alignment, size_t size) {
    void *volatile block = memalign(alignment, size);
    if (!block) return ENOMEM;
    *result = block;
    return 0;
}

#ifdef HIDDEN_RETURN
// It returns from wherever a variable says, so no safe place for its probes is known.
static void *get(size_t size) { return carve(16, size); }
static void *(*volatile getter)(size_t) = get;
void *_Znwm(size_t size) { return getter(size); }
#endif

#ifdef OPERATORS
// The operators of C++, under the names that its compilers give them. None calls malloc or free.
void *_Znwm(size_t size) {
    void *block = carve(16, size);
    if (!block) abort();
    return block;
}
void *_Znam(size_t size) { return _Znwm(size); }
void *_ZnwmSt11align_val_t(size_t size, size_t alignment) { return carve(alignment, size); }
void *_ZnwmRKSt9nothrow_t(size_t size, const void *nothrow) { return nothrow ? carve(16, size) : NULL; }
void _ZdlPv(void *block) { __asm__ volatile("" : : "r"(block) : "memory"); }
void _ZdlPvm(void *block, size_t size) { __asm__ volatile("" : : "r"(block), "r"(size) : "memory"); }
void _ZdlPvSt11align_val_t(void *block, size_t alignment) { __asm__ volatile("" : : "r"(block), "r"(alignment) : "memory"); }
void _ZdlPvmSt11align_val_t(void *block, size_t size, size_t alignment) {
    __asm__ volatile("" : : "r"(block), "r"(size), "r"(alignment) : "memory");
}
void _ZdaPv(void *block) { __asm__ volatile("" : : "r"(block) : "memory"); }
#endif
