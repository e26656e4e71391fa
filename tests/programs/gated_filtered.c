// Two threads under a filter of system calls that kills.
//
//     gated_filtered calls     at what a gate needs: memfd_create, mremap, mprotect, clone
//     gated_filtered all       at everything but what the program itself does, and what an allocator has to: mmap, munmap, brk
//     gated_filtered thread    the same as calls, in the second thread alone; the first one waits for a child of vfork, which answers
//     gated_filtered mdwe      no filter, but no memory may be written and executed, now or later
//
// Each line of the input is answered by "alive".
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/prctl.h>
#include <sys/syscall.h>

#include "protocol.h"

static atomic_ulong rounds;

static void fail(const char *why) { say(why); _exit(99); }

static void filter(const int *calls, int count, unsigned listed, unsigned others, int who) {
    struct sock_filter code[64];
    int at = 0;
    code[at++] = (struct sock_filter)BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr));
    for (int i = 0; i < count; i++) {
        code[at++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)calls[i], 0, 1);
        code[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, listed);
    }
    code[at++] = (struct sock_filter)BPF_STMT(BPF_RET | BPF_K, others);
    struct sock_fprog program = {(unsigned short)at, code};
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)) fail("no_new_privs");
    if (syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, who, &program)) fail("seccomp");
}

// Small blocks, for which no memory is asked of the kernel.
static void allocate(unsigned seed) {
    unsigned char *blocks[32];
    for (unsigned i = 0; i < 32; i++) {
        blocks[i] = i % 2 ? malloc(20 + i) : calloc(20 + i, 1);
        memset(blocks[i], (int)(seed + i), 20 + i);
        if (i % 3 == 0) blocks[i] = realloc(blocks[i], 40 + i);
    }
    for (unsigned i = 0; i < 32; i++) {
        for (unsigned j = 0; j < 20 + i; j++) if (blocks[i][j] != (unsigned char)(seed + i)) fail("corrupt");
        free(blocks[i]);
    }
}

static const int needed[] = {SYS_memfd_create, SYS_mremap, SYS_mprotect, SYS_clone, SYS_clone3, SYS_ptrace};
enum { NEEDED = sizeof needed / sizeof *needed };

static void *run(void *is_filtered) {
    for (unsigned seed = 0;; seed++) {
        // With an arena of its own by then.
        if (is_filtered && seed == 50) filter(needed, NEEDED, SECCOMP_RET_KILL_PROCESS, SECCOMP_RET_ALLOW, 0);
        allocate(seed);
        rounds++;
    }
    return NULL;
}

int main(int arguments, char **argument) {
    const char *mode = arguments > 1 ? argument[1] : "calls";
    static const int own[] = {SYS_read, SYS_write, SYS_writev, SYS_exit_group, SYS_restart_syscall, SYS_rt_sigreturn,
                              SYS_sched_yield, SYS_mmap, SYS_munmap, SYS_brk};
    pthread_t thread;
    char byte;
    expect_unknown_frees();
    ready();
    if (!strcmp(mode, "mdwe") && prctl(65 /* PR_SET_MDWE */, 1 /* PR_MDWE_REFUSE_EXEC_GAIN */, 0, 0, 0)) fail("no MDWE");
    int of_thread = !strcmp(mode, "thread");
    if (pthread_create(&thread, NULL, run, of_thread ? &rounds : NULL)) fail("no thread");
    while (rounds < 100) sched_yield();
    int all = SECCOMP_FILTER_FLAG_TSYNC;
    if (!strcmp(mode, "calls")) filter(needed, NEEDED, SECCOMP_RET_KILL_PROCESS, SECCOMP_RET_ALLOW, all);
    if (!strcmp(mode, "all")) filter(own, sizeof own / sizeof *own, SECCOMP_RET_ALLOW, SECCOMP_RET_KILL_PROCESS, all);
    if (of_thread && vfork() > 0) _exit(0);
    say("done");
    while (read(0, &byte, 1) == 1) {
        if (byte != '\n') continue;
        unsigned long before = rounds;
        while (rounds < before + 10) sched_yield();
        allocate(7);
        say("alive");
    }
    _exit(0);
}
