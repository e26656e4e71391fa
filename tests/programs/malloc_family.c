// Every function of the malloc family: leaking, freeing, failing, and on blocks from before the window.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <malloc.h>

#include "protocol.h"

// The tests below use a block after a realloc of it that must fail.
#pragma GCC diagnostic ignored "-Wuse-after-free"

#define TIMES(n) for (int i = 0; i < (n); i++)

static void (*cfree_of_old)(void *);

// NULL, which the compiler must not know: it makes a malloc of a realloc of NULL.
static void *volatile nothing;

CALLER void leak_malloc(void) { TIMES(7) KEEP(malloc(1001)); }
CALLER void leak_nothing_much(void) { TIMES(3) KEEP(malloc(0)); }
CALLER void leak_large(void) { TIMES(2) KEEP(malloc(300000)); }  // each by an mmap of the allocator's own
CALLER void leak_calloc(void) { TIMES(5) KEEP(calloc(3, 100)); }
CALLER void leak_realloc(void) { TIMES(4) KEEP(realloc(nothing, 250)); }
CALLER void leak_reallocarray(void) { TIMES(3) KEEP(reallocarray(nothing, 6, 111)); }
CALLER void leak_memalign(void) { TIMES(3) KEEP(memalign(256, 700)); }
CALLER void leak_aligned_alloc(void) { TIMES(3) KEEP(aligned_alloc(128, 1280)); }
CALLER void leak_valloc(void) { TIMES(2) KEEP(valloc(5000)); }
CALLER void leak_pvalloc(void) { TIMES(2) KEEP(pvalloc(5001)); }

CALLER void leak_posix_memalign(void) {
    TIMES(4) {
        void *block;
        if (posix_memalign(&block, 64, 333) == 0) KEEP(block);
    }
}

CALLER void *make(size_t size) {
    void *block = malloc(size);
    KEEP(block);
    return block;
}

CALLER void leak_grown(void) { KEEP(realloc(make(100), 5000)); }
CALLER void leak_grown_in_kernel(void) { KEEP(realloc(make(300000), 900000)); }  // an mremap of the allocator's own
CALLER void leak_shrunk(void) { KEEP(realloc(make(8000), 50)); }
CALLER void leak_grown_array(void) { KEEP(reallocarray(make(90), 70, 10)); }

CALLER void *leak_kept_by_failure(void) {
    void *block = malloc(640);
    KEEP(block);
    return block;
}

CALLER void fail(void *block) {
    void *unset = NULL;
    KEEP(malloc(HUGE_SIZE));
    KEEP(calloc(unforeseen(1UL << 33), unforeseen(1UL << 33)));
    KEEP(realloc(block, HUGE_SIZE));
    KEEP(reallocarray(block, unforeseen(1UL << 33), unforeseen(1UL << 33)));
    KEEP(memalign(64, HUGE_SIZE));
    KEEP(aligned_alloc(64, HUGE_SIZE));
    KEEP(valloc(HUGE_SIZE));
    KEEP(pvalloc(HUGE_SIZE));
    if (posix_memalign(&unset, unforeseen(3), 10) == 0) abort();
    if (posix_memalign(&unset, 64, HUGE_SIZE) == 0) abort();
}

CALLER void release(void) {
    free(make(11));
    cfree_of_old(make(12));
    KEEP(realloc(make(13), unforeseen(0)));  // glibc frees it and returns NULL, which is no failure
    free(make(400000));
    free(NULL);
}

CALLER void release_from_before(void *first, void *second) {
    free(first);
    KEEP(realloc(second, 2222));
}

int main(void) {
    // `cfree` is still in the library, for old binaries only. A static program has no such symbol.
    cfree_of_old = (void (*)(void *))dlvsym(RTLD_DEFAULT, "cfree", "GLIBC_2.2.5");
    if (!cfree_of_old) cfree_of_old = free;
    void *first = make(1234), *second = make(4321);

    expect_native("leak_malloc", "malloc", 7, 1001);
    expect_native("leak_nothing_much", "malloc", 3, 0);
    expect_native("leak_large", "malloc", 2, 300000);
    expect_native("leak_calloc", "calloc", 5, 300);
    expect_native("leak_realloc", "realloc", 4, 250);
    expect_native("leak_reallocarray", "reallocarray", 3, 666);
    expect_native("leak_memalign", "memalign|aligned_alloc", 3, 700);
    expect_native("leak_aligned_alloc", "memalign|aligned_alloc", 3, 1280);
    expect_native("leak_valloc", "valloc", 2, 5000);
    expect_native("leak_pvalloc", "pvalloc", 2, 5001);
    expect_native("leak_posix_memalign", "posix_memalign", 4, 333);
    expect_native("leak_grown", "realloc", 1, 5000);
    expect_native("leak_grown_in_kernel", "realloc", 1, 900000);
    expect_native("leak_shrunk", "realloc", 1, 50);
    expect_native("leak_grown_array", "reallocarray", 1, 700);
    expect_native("leak_kept_by_failure", "malloc", 1, 640);
    expect_native("release_from_before", "realloc", 1, 2222);
    expect_freed(4, 100 + 300000 + 8000 + 90);       // what realloc moved away from
    expect_freed(4, 11 + 12 + 13 + 400000);
    expect_failed(10);
    expect_unmatched(2);
    ready();

    leak_malloc();
    leak_nothing_much();
    leak_large();
    leak_calloc();
    leak_realloc();
    leak_reallocarray();
    leak_memalign();
    leak_aligned_alloc();
    leak_valloc();
    leak_pvalloc();
    leak_posix_memalign();
    leak_grown();
    leak_grown_in_kernel();
    leak_shrunk();
    leak_grown_array();
    fail(leak_kept_by_failure());
    release();
    release_from_before(first, second);
    done();
}
