// Code that no file has: two functions written into executable memory at run time, which call malloc and keep frame
// pointers. /tmp/perf-PID.map names one of them, as node and the JVM do; the other has no name. With `memfd` the memory is that of a
// file without a name, which is mapped twice, as Erlang does.
#define _GNU_SOURCE
#include <sys/mman.h>

#include "protocol.h"

enum { NAMED = 0, NAMELESS = 256, NAMED_SIZE = 416, NAMELESS_SIZE = 928 };

static char map_file[64];
static unsigned char *code;

// push %rbp; mov %rsp,%rbp; mov $size,%edi; movabs $malloc,%rax; call *%rax; pop %rbp; ret
static size_t assemble(unsigned char *at, unsigned size) {
    unsigned char text[] = {0x55, 0x48, 0x89, 0xe5, 0xbf, 0, 0, 0, 0, 0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xd0, 0x5d, 0xc3};
    void *(*target)(size_t) = malloc;
    memcpy(text + 5, &size, sizeof size);
    memcpy(text + 11, &target, sizeof target);
    memcpy(at, text, sizeof text);
    return sizeof text;
}

CALLER void call(int at) {
    void *block = ((void *(*)(void))(code + at))();
    KEEP(block);
}

int main(int count, char **arguments) {
    int file = -1;
    if (count > 1 && strcmp(arguments[1], "memfd") == 0) {
        file = memfd_create("vmem", 0);
        if (file < 0 || ftruncate(file, 4096) != 0) return 1;
    }
    int kind = file < 0 ? MAP_PRIVATE | MAP_ANONYMOUS : MAP_SHARED;
    unsigned char *written = mmap(NULL, 4096, PROT_READ | PROT_WRITE, kind, file, 0);
    size_t length = assemble(written + NAMED, NAMED_SIZE);
    assemble(written + NAMELESS, NAMELESS_SIZE);
    code = written;
    if (file >= 0) {
        code = mmap(NULL, 4096, PROT_READ | PROT_EXEC, kind, file, 0);
        if (code == MAP_FAILED) return 1;
    } else if (mprotect(code, 4096, PROT_READ | PROT_EXEC) != 0) {
        return 1;
    }
    snprintf(map_file, sizeof map_file, "/tmp/perf-%d.map", getpid());
    FILE *names = fopen(map_file, "w");
    fprintf(names, "%lx %zx LazyCompile:~leakInJit server.js:7\n", (unsigned long)(code + NAMED), length);
    fclose(names);

    expect_native("LazyCompile:~leakInJit server.js:7", "malloc", 5, NAMED_SIZE);
    ready();
    for (int i = 0; i < 5; i++) call(NAMED);
    call(NAMELESS);
    say("done");
    char byte;
    while (read(0, &byte, 1) == 1) continue;
    unlink(map_file);
    _exit(0);
}
