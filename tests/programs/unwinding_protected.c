// Allocates through code that mprotect made executable during the window: a library's, which could not run before, and some that was
// written at run time: it keeps frame pointers, or is CPython's way to call Python functions, which does not. Each goes on long enough for whoever traces to notice it.
//
//     unwinding_protected LIBRARY
#define _GNU_SOURCE
#include <dlfcn.h>
#include <link.h>
#include <sys/mman.h>

#include "protocol.h"

typedef void leaks(size_t);

static void *text;
static size_t length;

static int find_text(struct dl_phdr_info *info, size_t size, void *base) {
    (void)size;
    if ((void *)info->dlpi_addr != base) return 0;
    for (int i = 0; i < info->dlpi_phnum; i++) {
        const ElfW(Phdr) *part = &info->dlpi_phdr[i];
        if (part->p_type != PT_LOAD || !(part->p_flags & PF_X)) continue;
        text = (void *)(info->dlpi_addr + part->p_vaddr);
        length = part->p_memsz;
    }
    return 1;
}

static leaks *load(const char *path) {
    Dl_info info;
    void *library = dlopen(path, RTLD_NOW);
    void *leak = library ? dlsym(library, "leak") : NULL;
    if (!leak || !dladdr(leak, &info) || !dl_iterate_phdr(find_text, info.dli_fbase)) _exit(3);
    return (leaks *)leak;
}

// push %rbp; mov %rsp,%rbp; movabs $malloc,%rax; call *%rax; pop %rbp; ret
static void assemble(unsigned char *at) {
    unsigned char code[] = {0x55, 0x48, 0x89, 0xe5, 0x48, 0xb8, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xd0, 0x5d, 0xc3};
    void *(*target)(size_t) = malloc;
    memcpy(code + 6, &target, sizeof target);
    memcpy(at, code, sizeof code);
}

// sub $8, %rsp; call *%rcx; add $8, %rsp; ret: once for each function that can be called
enum { TRAMPOLINE = 16, TRAMPOLINES = 4096 / TRAMPOLINE };

static void copy_trampolines(unsigned char *at) {
    unsigned char code[TRAMPOLINE] = {0x48, 0x83, 0xec, 0x08, 0xff, 0xd1, 0x48, 0x83, 0xc4, 0x08, 0xc3};
    for (int i = 0; i < TRAMPOLINES; i++) memcpy(at + i * TRAMPOLINE, code, sizeof code);
}

CALLER void protect(void *at, size_t size, int protection) {
    if (mprotect(at, size, protection)) _exit(4);
}

CALLER void by_library(leaks *leak) {
    for (int i = 0; i < 3000; i++) {
        leak(1000);
        usleep(1000);
    }
}

CALLER void by_written(void *(*code)(size_t)) {
    for (int i = 0; i < 3000; i++) {
        KEEP(code(2000));
        usleep(1000);
    }
}

CALLER void called(size_t size) {
    KEEP(malloc(size));
    __asm__ volatile("");
}

typedef void trampoline(size_t size, long, long, void (*function)(size_t));

CALLER void by_trampoline(unsigned char *code) {
    for (int i = 0; i < 3000; i++) {
        ((trampoline *)(code + i % 2 * 7 * TRAMPOLINE))(3000, 0, 0, called);
        usleep(1000);
    }
}

static void *new_page(void) {
    void *page = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    // Mappings that are next to each other and alike become one.
    if (page == MAP_FAILED || mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED) _exit(5);
    return page;
}

int main(int count, char **arguments) {
    if (count != 2) return 2;
    leaks *leak = load(arguments[1]);
    protect(text, length, PROT_READ);
    void *page = new_page(), *trampolines = new_page();
    assemble(page);
    copy_trampolines(trampolines);
    expect_unknown_frees();
    ready();
    protect(text, length, PROT_READ | PROT_EXEC);
    by_library(leak);
    protect(page, 4096, PROT_READ | PROT_EXEC);
    by_written((void *(*)(size_t))page);
    protect(trampolines, 4096, PROT_READ | PROT_EXEC);
    by_trampoline(trampolines);
    done();
}
