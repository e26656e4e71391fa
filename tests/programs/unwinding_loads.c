// Loads libraries, lets them allocate, and unloads them, one after the other at the same address.
//
//     unwinding_loads CYCLES LIBRARY...
//
// In cycle N the library allocates N+1 times, 1000 + its number bytes each. Then the last library stays, the program says
// "loaded", and after a line on its input it allocates 2000 bytes.
#define _GNU_SOURCE
#include <dlfcn.h>

#include "protocol.h"

typedef void leaks(size_t);

static const char *address;

CALLER leaks *load(const char *path, void **library) {
    Dl_info info;
    *library = dlopen(path, RTLD_NOW);
    void *leak = *library ? dlsym(*library, "leak") : NULL;
    if (!leak || !dladdr(leak, &info)) _exit(3);
    if (!address) address = info.dli_fbase;
    if (address != info.dli_fbase) _exit(4);  // this would be no test
    return (leaks *)leak;
}

CALLER void cycle(const char *path, int calls, size_t size) {
    void *library;
    leaks *leak = load(path, &library);
    for (int i = 0; i < calls; i++) leak(size);
    dlclose(library);
}

CALLER void stay(const char *path) {
    void *library;
    leaks *leak = load(path, &library);
    say("loaded");
    await_line();
    leak(2000);
    __asm__ volatile("" ::: "memory");
}

int main(int count, char **arguments) {
    if (count < 3) return 2;
    int cycles = atoi(arguments[1]), libraries = count - 2;
    expect_unknown_frees();
    ready();
    for (int i = 0; i < cycles; i++) cycle(arguments[2 + i % libraries], i + 1, 1000 + (size_t)(i % libraries));
    stay(arguments[2]);
    done();
}
