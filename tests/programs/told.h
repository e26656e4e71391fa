// A pool that samples its own blocks and tells of them as OpenTelemetry's contract has it: `otel_memory:alloc(ptr, size, weight)` and
// `otel_memory:free(ptr)`. One block in four is told, with four times its size as its weight; so every number is known.
#ifndef TOLD_H
#define TOLD_H

#include <stddef.h>
#ifdef SEMAPHORES
#define SDT_USE_VARIADIC
#define _SDT_HAS_SEMAPHORES 1
__extension__ unsigned short otel_memory_alloc_semaphore __attribute__((unused, section(".probes")));
__extension__ unsigned short otel_memory_free_semaphore __attribute__((unused, section(".probes")));
#define LISTENED_TO(probe) __builtin_expect(*(volatile unsigned short *)&otel_memory_##probe##_semaphore, 0)
#else
#define LISTENED_TO(probe) 1
#endif
#include <sys/mman.h>
#include <sys/sdt.h>

enum { ONE_IN = 4 };

static unsigned char *pool_next, *pool_end;
static unsigned long pool_calls;

static __attribute__((noipa)) void *pool_get(size_t size) {
    size_t room = (size + 31) & ~(size_t)15;
    if ((size_t)(pool_end - pool_next) < room) {
        size_t bytes = 1 << 22;
        pool_next = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (pool_next == MAP_FAILED) __builtin_trap();
        pool_end = pool_next + bytes;
    }
    unsigned char *block = pool_next + 16;
    pool_next += room;
    block[-1] = pool_calls++ % ONE_IN == 0;
    if (block[-1] && LISTENED_TO(alloc)) STAP_PROBE3(otel_memory, alloc, block, size, size * ONE_IN);
    return block;
}

static __attribute__((noipa, used)) void pool_put(void *block) {
    if (((unsigned char *)block)[-1] && LISTENED_TO(free)) STAP_PROBE1(otel_memory, free, block);
}

#endif
