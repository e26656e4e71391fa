// Code that no file has: two functions written into executable memory at run time, which call malloc and keep frame
// pointers. /tmp/perf-PID.map names one of them, as node and the JVM do; the other has no name.
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

int main(void) {
    code = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    size_t length = assemble(code + NAMED, NAMED_SIZE);
    assemble(code + NAMELESS, NAMELESS_SIZE);
    if (mprotect(code, 4096, PROT_READ | PROT_EXEC) != 0) return 1;
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
