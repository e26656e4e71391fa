// mimalloc under its own names, as Rust's mimalloc crate calls it.
#include "protocol.h"

void *mi_malloc(size_t);
void *mi_zalloc(size_t);
void *mi_calloc(size_t, size_t);
void *mi_realloc(void *, size_t);
void *mi_malloc_aligned(size_t, size_t);
void *mi_realloc_aligned(void *, size_t, size_t);
void mi_free(void *);

CALLER void leak_malloc(void) { for (int i = 0; i < 300; i++) KEEP(mi_malloc(unforeseen(100))); }
CALLER void leak_zalloc(void) { for (int i = 0; i < 4; i++) KEEP(mi_zalloc(unforeseen(200))); }
CALLER void leak_calloc(void) { for (int i = 0; i < 5; i++) KEEP(mi_calloc(unforeseen(3), unforeseen(50))); }
CALLER void leak_realloc(void) { KEEP(mi_realloc(mi_malloc(unforeseen(30)), unforeseen(700))); }
CALLER void leak_aligned(void) { for (int i = 0; i < 2; i++) KEEP(mi_malloc_aligned(unforeseen(512), 256)); }
CALLER void leak_grown(void) { KEEP(mi_realloc_aligned(mi_malloc_aligned(40, 64), unforeseen(800), 64)); }
CALLER void release(void) { mi_free(mi_malloc(unforeseen(60))); }

int main(void) {
    KEEP(mi_malloc(1));
    // One function may serve both.
    expect_native("leak_malloc", "mi_malloc|malloc", 300, 100);
    expect_native("leak_zalloc", "mi_zalloc", 4, 200);
    expect_native("leak_calloc", "mi_calloc|calloc", 5, 150);
    expect_native("leak_realloc", "mi_realloc|realloc", 1, 700);
    expect_native("leak_aligned", "mi_malloc_aligned", 2, 512);
    expect_native("leak_grown", "mi_realloc_aligned", 1, 800);
    expect_freed(3, 30 + 40 + 60);
    ready();
    leak_malloc();
    leak_zalloc();
    leak_calloc();
    leak_realloc();
    leak_aligned();
    leak_grown();
    release();
    done();
}
