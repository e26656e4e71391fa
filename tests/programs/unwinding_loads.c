// Loads libraries, lets them allocate, and unloads them, one after the other at the same address.
//
//     unwinding_loads CYCLES LIBRARY...
//
// The library number N allocates 1000 + N bytes each time. Then the first library stays, and allocates 2000 bytes each time. Each
// allocates until whoever traces has had the time to notice it.
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

CALLER void cycle(const char *path, size_t size) {
    void *library;
    leaks *leak = load(path, &library);
    for (int i = 0; i < 300; i++) {
        leak(size);
        usleep(1000);
    }
    dlclose(library);
}

CALLER void stays(const char *path) {
    void *library;
    leaks *leak = load(path, &library);
    for (int i = 0; i < 300; i++) {
        leak(2000);
        usleep(1000);
    }
}

int main(int count, char **arguments) {
    if (count < 3) return 2;
    int cycles = atoi(arguments[1]), libraries = count - 2;
    expect_unknown_frees();
    ready();
    for (int i = 0; i < cycles; i++) cycle(arguments[2 + i % libraries], 1000 + (size_t)(i % libraries));
    stays(arguments[2]);
    done();
}
