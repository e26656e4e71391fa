// An allocator that no table knows (pool.c): its functions, and a program that leaks through them (pool_user.c).
#ifndef POOL_H
#define POOL_H
#include <stddef.h>

struct pool;
extern struct pool *pool_default;

void *pool_get(size_t size);
void *pool_zget(size_t count, size_t size);
void *pool_grow(void *block, size_t size);
void pool_put(void *block);
// The same, with the pool in front.
void *pool_get_from(struct pool *pool, size_t size);
void pool_put_to(struct pool *pool, void *block);

// The C interface under a prefix.
void *my_malloc(size_t size);
void *my_calloc(size_t count, size_t size);
void *my_realloc(void *block, size_t size);
void my_free(void *block);
void my_free_sized(void *block, size_t size);
#endif
