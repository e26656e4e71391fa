// musl's malloc family leaking.
#include "protocol.h"

CALLER void leak_malloc(void) { for (int i = 0; i < 200; i++) KEEP(malloc(unforeseen(100))); }
CALLER void leak_calloc(void) { for (int i = 0; i < 5; i++) KEEP(calloc(unforeseen(3), unforeseen(50))); }
CALLER void leak_realloc(void) { KEEP(realloc(malloc(unforeseen(30)), unforeseen(700))); }
CALLER void leak_aligned(void) { for (int i = 0; i < 2; i++) KEEP(aligned_alloc(256, unforeseen(512))); }
CALLER void release(void) {
    KEEP(malloc(unforeseen(60)));
    free(kept);
}

int main(void) {
    expect_native("leak_malloc", "malloc", 200, 100);
    expect_native("leak_calloc", "calloc", 5, 150);
    expect_native("leak_realloc", "realloc", 1, 700);
    expect_native("leak_aligned", "aligned_alloc", 2, 512);
    expect_freed(2, 30 + 60);
    ready();
    leak_malloc(), leak_calloc(), leak_realloc(), leak_aligned(), release();
    done();
}
