// Leaks through an allocator that no table knows (pool.c). With `prefix` through its functions with a prefix, with `own`
// through the others.
#include "pool.h"
#include "protocol.h"

CALLER void leak_get(void) { for (int i = 0; i < 7; i++) KEEP(pool_get(unforeseen(100))); }
CALLER void leak_zget(void) { for (int i = 0; i < 3; i++) KEEP(pool_zget(unforeseen(4), unforeseen(25))); }
CALLER void leak_grow(void) { KEEP(pool_grow(pool_get(unforeseen(30)), unforeseen(300))); }
CALLER void leak_get_from(void) { KEEP(pool_get_from(pool_default, unforeseen(500))); }
CALLER void give_back(void) {
    pool_put(pool_get(unforeseen(60)));
    pool_put_to(pool_default, pool_get_from(pool_default, unforeseen(70)));
}

CALLER void leak_malloc(void) { for (int i = 0; i < 5; i++) KEEP(my_malloc(unforeseen(110))); }
CALLER void leak_calloc(void) { for (int i = 0; i < 2; i++) KEEP(my_calloc(unforeseen(3), unforeseen(40))); }
CALLER void leak_realloc(void) { KEEP(my_realloc(my_malloc(unforeseen(40)), unforeseen(400))); }
CALLER void free_all(void) {
    my_free(my_malloc(unforeseen(80)));
    my_free_sized(my_malloc(unforeseen(90)), 90);
}

int main(int argc, char **argv) {
    int own = argc > 1 && strcmp(argv[1], "own") == 0;
    if (own) {
        expect_native("leak_get", "pool_get", 7, 100);
        expect_native("leak_zget", "pool_zget", 3, 100);
        expect_native("leak_grow", "pool_grow", 1, 300);
        expect_native("leak_get_from", "pool_get_from", 1, 500);
        expect_freed(3, 30 + 60 + 70);
    } else {
        expect_native("leak_malloc", "my_malloc", 5, 110);
        expect_native("leak_calloc", "my_calloc", 2, 120);
        expect_native("leak_realloc", "my_realloc", 1, 400);
        expect_freed(3, 40 + 80 + 90);
    }
    ready();
    if (own) leak_get(), leak_zget(), leak_grow(), leak_get_from(), give_back();
    else leak_malloc(), leak_calloc(), leak_realloc(), free_all();
    done();
}
