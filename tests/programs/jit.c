// Code that no file has: two functions written into executable memory at run time, which call malloc and keep frame
// pointers. /tmp/perf-PID.map names one of them, as node and the JVM do; the other has no name. With `memfd` the memory is that of a
// file without a name, which is mapped twice, as Erlang does. With `jitdump` the names are in /tmp/jit-PID.dump, as .NET and LLVM write
// them: with lines, and of code that was moved before it ran. With `late` that is written when the code has run, out of a buffer.
#define _GNU_SOURCE
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <time.h>

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

static uint64_t now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000ull + now.tv_nsec;
}

static FILE *dump;

static void record(uint32_t kind, const void *body, uint32_t size) {
    struct { uint32_t kind, size; uint64_t time; } head = {kind, sizeof head + size, now_ns()};
    fwrite(&head, sizeof head, 1, dump);
    fwrite(body, size, 1, dump);
}

// From which byte of the code on which line is meant.
static size_t line(unsigned char *at, uint64_t address, uint32_t number, const char *file) {
    uint32_t discriminator = 0;
    memcpy(at, &address, 8);
    memcpy(at + 8, &number, 4);
    memcpy(at + 12, &discriminator, 4);
    strcpy((char *)at + 16, file);
    return 17 + strlen(file);
}

// As if the function had been compiled somewhere else, and moved.
static void begin_dump(const unsigned char *function, uint64_t length) {
    enum { ELSEWHERE = 0x1000, RETURN = 21 };
    snprintf(map_file, sizeof map_file, "/tmp/jit-%d.dump", getpid());
    int file = open(map_file, O_CREAT | O_TRUNC | O_RDWR, 0600);
    struct { uint32_t magic, version, size, machine, padding, pid; uint64_t time, flags; } header =
        {0x4a695444, 1, sizeof header, 62, 0, getpid(), now_ns(), 0};
    // Who profiles sees by this where the file is.
    if (mmap(NULL, sizeof header, PROT_READ | PROT_EXEC, MAP_PRIVATE, file, 0) == MAP_FAILED) exit(1);
    dump = fdopen(file, "w");
    fwrite(&header, sizeof header, 1, dump);
    unsigned char lines[256];
    uint64_t head[] = {ELSEWHERE, 3};
    memcpy(lines, head, sizeof head);
    size_t size = sizeof head;
    size += line(lines + size, ELSEWHERE, 6, "/srv/server.rb");
    size += line(lines + size, ELSEWHERE + RETURN - 2, 7, "\xff");
    size += line(lines + size, ELSEWHERE + RETURN, 8, "\xff");
    record(2, lines, size);
    struct { uint32_t pid, thread; uint64_t virtual, address, size, number; char name[32]; } load =
        {getpid(), getpid(), ELSEWHERE, ELSEWHERE, length, 1, "leakInJit"};
    // The name and its zero, then the code.
    unsigned char bytes[256];
    size = offsetof(__typeof__(load), name) + strlen(load.name) + 1;
    memcpy(bytes, &load, size);
    memcpy(bytes + size, function, length);
    record(0, bytes, size + length);
    struct { uint32_t pid, thread; uint64_t virtual, from, to, size, number; } moved =
        {getpid(), getpid(), (uint64_t)function, ELSEWHERE, (uint64_t)function, length, 1};
    record(1, &moved, sizeof moved);
}

CALLER void call(int at) {
    void *block = ((void *(*)(void))(code + at))();
    KEEP(block);
}

int main(int count, char **arguments) {
    int file = -1;
    int is_late = count > 1 && strcmp(arguments[1], "late") == 0;
    int is_dump = is_late || (count > 1 && strcmp(arguments[1], "jitdump") == 0);
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
    if (is_dump) {
        begin_dump(code + NAMED, length);
        if (!is_late) fflush(dump);
    } else {
        snprintf(map_file, sizeof map_file, "/tmp/perf-%d.map", getpid());
        FILE *names = fopen(map_file, "w");
        fprintf(names, "%lx %zx LazyCompile:~leakInJit server.js:7\n", (unsigned long)(code + NAMED), length);
        fclose(names);
    }

    expect_native(is_dump ? "leakInJit" : "LazyCompile:~leakInJit server.js:7", "malloc", 5, NAMED_SIZE);
    ready();
    for (int i = 0; i < 5; i++) call(NAMED);
    call(NAMELESS);
    if (is_late) fflush(dump);
    say("done");
    char byte;
    while (read(0, &byte, 1) == 1) continue;
    unlink(map_file);
    _exit(0);
}
