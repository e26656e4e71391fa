// Loads libraries, lets them allocate, and unloads them, one after the other at the same address.
//
//     unwinding_loads CYCLES CALLS PAUSE_US LIBRARY...
//
// In a cycle the library allocates CALLS times with a pause after each; library number N allocates 1000 + N bytes each time. Then
// the first library stays and allocates 2000 bytes until whoever traces has had the time to notice it. At last the code of the last
// library, which must be that of the first but for its names, is mapped over it, and allocates 3000 bytes as long.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <link.h>
#include <sys/mman.h>

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

CALLER void cycle(const char *path, size_t size, int calls, unsigned pause) {
    void *library;
    leaks *leak = load(path, &library);
    for (int i = 0; i < calls; i++) {
        leak(size);
        if (pause) usleep(pause);
    }
    dlclose(library);
}

CALLER void again(leaks *leak, size_t size) {
    for (int i = 0; i < 1000; i++) {
        leak(size);
        usleep(1000);
    }
}

CALLER leaks *stays(const char *path) {
    void *library;
    leaks *leak = load(path, &library);
    again(leak, 2000);
    return leak;
}

// Maps the code of a file where that of the first library is.
static int map_over(struct dl_phdr_info *info, size_t size, void *file) {
    (void)size;
    if ((const char *)info->dlpi_addr != address) return 0;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *part = &info->dlpi_phdr[i];
        if (part->p_type != PT_LOAD || !(part->p_flags & PF_X)) continue;
        void *at = (void *)(info->dlpi_addr + part->p_vaddr);
        void *got = mmap(at, part->p_memsz, PROT_READ | PROT_EXEC, MAP_PRIVATE | MAP_FIXED, *(int *)file, (off_t)part->p_offset);
        if (got != at) _exit(5);
    }
    return 1;
}

CALLER void replaced(leaks *leak, const char *path) {
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0 || !dl_iterate_phdr(map_over, &file)) _exit(6);
    again(leak, 3000);
}

int main(int count, char **arguments) {
    if (count < 5) return 2;
    int cycles = atoi(arguments[1]), calls = atoi(arguments[2]), libraries = count - 4;
    char **paths = arguments + 4;
    expect_unknown_frees();
    ready();
    for (int i = 0; i < cycles; i++)
        cycle(paths[i % libraries], 1000 + (size_t)(i % libraries), calls, (unsigned)atoi(arguments[3]));
    replaced(stays(paths[0]), paths[libraries - 1]);
    done();
}
