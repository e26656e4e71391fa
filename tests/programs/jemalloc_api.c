// jemalloc's own interface, linked statically under a prefix (PREFIX), as Rust's tikv-jemallocator and Redis do.
#include "protocol.h"

#define JOIN2(a, b) a##b
#define JOIN(a, b) JOIN2(a, b)
#define NAME(f) JOIN(PREFIX, f)
#define TEXT2(name) #name
#define TEXT(name) TEXT2(name)
#define LIKE(f) TEXT(NAME(f))

void *NAME(malloc)(size_t);
void *NAME(calloc)(size_t, size_t);
void *NAME(realloc)(void *, size_t);
void *NAME(aligned_alloc)(size_t, size_t);
void NAME(free)(void *);
void *NAME(mallocx)(size_t, int);
void *NAME(rallocx)(void *, size_t, int);
void NAME(dallocx)(void *, int);
void NAME(sdallocx)(void *, size_t, int);

CALLER void leak_malloc(void) { for (int i = 0; i < 300; i++) KEEP(NAME(malloc)(unforeseen(100))); }
CALLER void leak_calloc(void) { for (int i = 0; i < 5; i++) KEEP(NAME(calloc)(unforeseen(3), unforeseen(50))); }
CALLER void leak_realloc(void) { KEEP(NAME(realloc)(NAME(malloc)(unforeseen(30)), unforeseen(700))); }
CALLER void leak_aligned(void) { for (int i = 0; i < 2; i++) KEEP(NAME(aligned_alloc)(256, unforeseen(512))); }
CALLER void leak_mallocx(void) { for (int i = 0; i < 4; i++) KEEP(NAME(mallocx)(unforeseen(200), 0)); }
CALLER void leak_rallocx(void) { KEEP(NAME(rallocx)(NAME(mallocx)(unforeseen(40), 0), unforeseen(800), 0)); }
CALLER void release(void) {
    NAME(free)(NAME(malloc)(unforeseen(60)));
    NAME(dallocx)(NAME(mallocx)(unforeseen(70), 0), 0);
    NAME(sdallocx)(NAME(mallocx)(unforeseen(80), 0), 80, 0);
}

int main(void) {
    KEEP(NAME(malloc)(1));  // jemalloc sets itself up
    expect_native("leak_malloc", LIKE(malloc), 300, 100);
    expect_native("leak_calloc", LIKE(calloc), 5, 150);
    expect_native("leak_realloc", LIKE(realloc), 1, 700);
    expect_native("leak_aligned", LIKE(aligned_alloc), 2, 512);
    expect_native("leak_mallocx", LIKE(mallocx), 4, 200);
    expect_native("leak_rallocx", LIKE(rallocx), 1, 800);
    expect_freed(5, 30 + 40 + 60 + 70 + 80);
    ready();
    leak_malloc();
    leak_calloc();
    leak_realloc();
    leak_aligned();
    leak_mallocx();
    leak_rallocx();
    release();
    done();
}
