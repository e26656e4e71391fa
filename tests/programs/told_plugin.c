// A library with a pool that tells of its blocks itself; loaded by plugin_host.c.
#include "told.h"

static void *volatile kept;

__attribute__((noipa)) void plugin_leak(int count, size_t size) {
    // Four times as many, of which one in four is told.
    for (int i = 0; i < count; i++) kept = pool_get(size);
}
