// Processes with few threads, or with odd ones.
//
//     gated_lone pause       one thread, which waits for signals
//     gated_lone reserves    the same, and has reserved all addresses below the C library, as far as a jump reaches
//     gated_lone splits      the same, and a part of the code of its C library is a mapping of its own
//     gated_lone locks_all   the same, and all its memory is locked, now and later
//     gated_lone twice       the same, and it has loaded the C library a second time
//     gated_lone queue       the same, and it is to be told of messages of a queue
//     gated_lone pours       the same, and the first thread waits until a pipe has taken all that it writes
//     gated_lone handles     the same; SIGUSR2 says "handling", waits for half a second, and says "handled"
//     gated_lone busy        one thread, which calculates, and calls neither the allocator nor the kernel
//     gated_lone allocates   one thread, which allocates, and seldom calls the kernel
//     gated_lone io_uring    the same, and a thread of the kernel waits for what a pipe has; what came is checked at the end
//     gated_lone dead        the first thread has ended, another one allocates
//     gated_lone narrow      one thread, which executes 32-bit code half of the time
//     gated_lone crowd       a hundred threads that sleep, and one that allocates
//     gated_lone jumps       one thread, which a signal each half millisecond leads away from where it is, by siglongjmp
//     gated_lone sequences   four threads in restartable sequences, which count
//
// SIGUSR1 is answered by "alive", if all is right; SIGTERM ends it.
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <mqueue.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#ifdef __GLIBC__
#include <sys/rseq.h>
#endif

#include "protocol.h"

static volatile sig_atomic_t asked, ended;

static void fail(const char *why) { say(why); _exit(99); }

static void on_signal(int number) {
    if (number == SIGTERM) ended = 1;
    else asked++;
}

// Random blocks, which are checked.
static void allocate(unsigned turns) {
    enum { HELD = 16 };
    static __thread uint64_t state = 88172645463325252ULL;
    unsigned char *held[HELD] = {0};
    size_t sizes[HELD] = {0};
    for (unsigned i = 0; i < turns; i++) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        unsigned at = state >> 32 & (HELD - 1);
        for (size_t j = 0; j < sizes[at]; j++) if (held[at][j] != at) fail("corrupt");
        if (state & 1 << 20) {
            held[at] = realloc(held[at], sizes[at] = 1 + state % 1000);
        } else {
            free(held[at]);
            held[at] = state & 1 << 21 ? malloc(sizes[at] = 1 + state % 1000) : calloc(1, sizes[at] = 1 + state % 1000);
        }
        if (!held[at]) fail("no memory");
        memset(held[at], (int)at, sizes[at]);
    }
    for (unsigned at = 0; at < HELD; at++) {
        for (size_t j = 0; j < sizes[at]; j++) if (held[at][j] != at) fail("corrupt");
        free(held[at]);
    }
}

static void (*at_the_end)(void);

// What else there is to do, for who has nothing to wait for.
static void answer(void) {
    static sig_atomic_t answered;
    if (ended) {
        allocate(1000);
        if (at_the_end) at_the_end();
        _exit(0);
    }
    if (asked != answered) {
        answered = asked;
        allocate(1000);
        say("alive");
    }
}

static void wait_for_signals(void) {
    sigset_t both, before;
    sigemptyset(&both);
    sigaddset(&both, SIGUSR1);
    sigaddset(&both, SIGTERM);
    sigprocmask(SIG_BLOCK, &both, &before);
    for (;;) {
        sigsuspend(&before);
        answer();
    }
}

// All that is free within 3 GiB below this address.
static void reserve_below(uintptr_t address) {
    uintptr_t at = (address & -4096UL) - (3UL << 30), start, end;
    static char line[4096];
    FILE *maps = fopen("/proc/self/maps", "r");
    struct { uintptr_t start, end; } free[512];
    int count = 0;
    while (fgets(line, sizeof line, maps) && at < address) {
        if (sscanf(line, "%lx-%lx", &start, &end) != 2) fail("no mapping");
        if (start > at) free[count].start = at, free[count++].end = start;
        if (end > at) at = end;
    }
    fclose(maps);
    for (int i = 0; i < count; i++) {
        size_t bytes = free[i].end - free[i].start;
        void *place = (void *)free[i].start;
        int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED_NOREPLACE;
        if (mmap(place, bytes, PROT_NONE, flags, -1, 0) != place) fail("cannot reserve");
    }
}

static void handle(int number) {
    struct timespec left = {0, 500000000};
    (void)number;
    say("handling");
    while (nanosleep(&left, &left)) continue;
    say("handled");
}

static void begin(void *(*what)(void *), size_t argument) {
    pthread_t thread;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, 256 << 10);
    if (pthread_create(&thread, &attributes, what, (void *)argument)) fail("no thread");
}

// ---- a thread of the kernel

static int pipe_in[2], pipe_out[2];
static struct io_uring_cqe *completions;
static volatile unsigned *completed;

static void be_completed(void) {
    if (*completed != 0) fail("it was interrupted");
    if (write(pipe_in[1], "four", 4) != 4) fail("the pipe is full");
    while (*completed == 0) usleep(1000);
    if (completions[0].res != 4) fail("it has failed");
}

// splice(2) from a pipe that is empty, which no thread of the program waits for.
static void begin_splice(void) {
    struct io_uring_params parameters = {0};
    int ring = (int)syscall(SYS_io_uring_setup, 4, &parameters);
    if (ring < 0 || pipe(pipe_in) || pipe(pipe_out)) fail("no io_uring");
    size_t bytes = parameters.cq_off.cqes + parameters.cq_entries * sizeof(struct io_uring_cqe);
    int how = PROT_READ | PROT_WRITE;
    char *rings = mmap(NULL, bytes + 4096, how, MAP_SHARED, ring, IORING_OFF_SQ_RING);
    struct io_uring_sqe *entry = mmap(NULL, 4 * sizeof *entry, how, MAP_SHARED, ring, IORING_OFF_SQES);
    if (rings == MAP_FAILED || entry == MAP_FAILED) fail("no rings");
    completed = (unsigned *)(rings + parameters.cq_off.tail);
    completions = (struct io_uring_cqe *)(rings + parameters.cq_off.cqes);
    entry->opcode = IORING_OP_SPLICE;
    entry->flags = IOSQE_ASYNC;
    entry->fd = pipe_out[1];
    entry->splice_fd_in = pipe_in[0];
    entry->off = entry->splice_off_in = UINT64_MAX;
    entry->len = 4;
    ((unsigned *)(rings + parameters.sq_off.array))[0] = 0;
    __atomic_store_n((unsigned *)(rings + parameters.sq_off.tail), 1, __ATOMIC_RELEASE);
    if (syscall(SYS_io_uring_enter, ring, 1, 0, 0, NULL, 0) != 1) fail("not begun");
    at_the_end = be_completed;
}

// ---- a call that has done a part

static char poured[1 << 20];
static volatile long result;

static void take_all(void) {
    static char taken[4096];
    if (result) fail("a part was written");
    for (size_t left = sizeof poured; left;) {
        ssize_t count = read(pipe_in[0], taken, sizeof taken);
        if (count <= 0) fail("the pipe is empty");
        left -= (size_t)count;
    }
    while (!result) usleep(1000);
    if (result != sizeof poured) fail("not all was written");
}

static void *waiting_thread(void *argument) {
    wait_for_signals();
    return argument;
}

static void pour(void) {
    sigset_t all;
    if (pipe(pipe_in)) fail("no pipe");
    at_the_end = take_all;
    begin(waiting_thread, 0);
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, NULL);
    result = write(pipe_in[1], poured, sizeof poured);
    // What came of it is looked at when others were led aside.
    for (;;) pause();
}

// ---- a queue of messages

static void be_told_of_messages(void) {
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR2};
    mqd_t queue = mq_open("/tracer-gated-lone", O_CREAT | O_RDWR, 0600, NULL);
    if (queue < 0 || mq_unlink("/tracer-gated-lone") || mq_notify(queue, &event)) fail("no queue");
}

// ---- code of 32 bits

static void be_narrow(void) {
    // Counts `ecx` down in 32-bit code, and comes back.
    unsigned char narrow[] = {
        0xff, 0xc9,                    // dec ecx
        0x75, 0xfc,                    // jnz back
        0xea, 0, 0, 0, 0, 0x33, 0,     // jmp far, to 64-bit code
    };
    int how = PROT_READ | PROT_WRITE | PROT_EXEC;
    unsigned char *low = mmap(NULL, 65536, how, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    if (low == MAP_FAILED) fail("no low memory");
    uint32_t start = (uint32_t)(uintptr_t)low, back = start + 128;
    memcpy(narrow + 5, &back, 4);
    memcpy(low, narrow, sizeof narrow);
    memcpy(low + 128, "\x41\xff\xe0", 3);  // jmp r8
    struct { uint32_t to; uint16_t code; } __attribute__((packed)) there = {start, 0x23};
    for (;;) {
        // On a stack of 32 bits: a signal is taken there.
        __asm__ volatile(
            "movq %%rsp, %%r9\n"
            "movq %1, %%rsp\n"
            "movl $100000, %%ecx\n"
            "leaq 1f(%%rip), %%r8\n"
            "ljmp *(%0)\n"
            "1: movq %%r9, %%rsp\n"
            :
            : "r"(&there), "r"(low + 65536 - 64)
            : "rcx", "r8", "r9", "memory", "cc");
        allocate(200);
        answer();
    }
}

static void be_busy(void) {
    double sum = 0;
    uint64_t state = 1, count = 0;
    // The vector registers are the program's, too.
    for (;;) {
        double again = 0;
        uint64_t second = 1;
        for (int i = 0; i < 100000; i++) state = state * 6364136223846793005u + 1, sum += (double)(state >> 40);
        state = 1;
        for (int i = 0; i < 100000; i++) second = second * 6364136223846793005u + 1, again += (double)(second >> 40);
        if (sum != again) fail("wrong");
        sum = 0;
        count++;
        answer();
    }
}

static void allocate_for_ever(void) {
    for (;;) {
        allocate(1000);
        answer();
    }
}

static void *other_thread(void *argument) {
    (void)argument;
    allocate_for_ever();
    return NULL;
}

static void *sleeping_thread(void *argument) {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, NULL);
    for (;;) pause();
    return argument;
}

// ---- jumps

static sigjmp_buf back;
static volatile sig_atomic_t may_jump, jumps;

static void jump(int number) {
    (void)number;
    jumps++;
    // Out of the allocator it would be the program's own mistake.
    if (may_jump) siglongjmp(back, 1);
}

static void jump_for_ever(void) {
    struct sigaction action = {.sa_handler = jump};
    struct itimerval timer = {{0, 500}, {0, 500}};
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &timer, NULL);
    volatile unsigned round = 0;
    for (;;) {
        may_jump = 0;
        allocate(20);
        answer();
        volatile uint64_t sum = 0;
        if (sigsetjmp(back, 1) == 0) {
            may_jump = 1;
            // In calls that wait, in others, and in none.
            if (round++ % 3 == 0) usleep(2000);
            else if (round % 3 == 1) for (int i = 0; i < 300; i++) syscall(SYS_getppid);
            else for (unsigned i = 0; i < 300000; i++) sum += i;
        }
        may_jump = 0;
    }
}

// ---- restartable sequences

#ifdef __GLIBC__
enum { CPUS = 4096, COUNTERS = 4 };
static long counts[CPUS * 8], done_in[COUNTERS];
static pthread_barrier_t stop;

// Adds one to the counter of the CPU, slowly: for a while what is read is not yet written. Whether that was not interrupted.
static int count_once(struct rseq *area) {
    uint32_t cpu = *(volatile uint32_t *)&area->cpu_id_start;
    long *counter = &counts[cpu * 8];
    __asm__ volatile goto(
        ".pushsection __rseq_cs, \"aw\"\n"
        ".balign 32\n"
        "3: .long 0, 0\n"
        ".quad 1f, 2f - 1f, 4f\n"
        ".popsection\n"
        "leaq 3b(%%rip), %%rax\n"
        "movq %%rax, 8(%[area])\n"
        "1: cmpl %[cpu], 4(%[area])\n"
        "jne 4f\n"
        "movq (%[counter]), %%rcx\n"
        "movl $20000, %%eax\n"
        "5: decl %%eax\n"
        "jnz 5b\n"
        "incq %%rcx\n"
        "movq %%rcx, (%[counter])\n"
        "2:\n"
        ".pushsection __rseq_failure, \"ax\"\n"
        ".byte 0x0f, 0xb9, 0x3d\n"
        ".long 0x53053053\n"
        "4: jmp %l[aborted]\n"
        ".popsection\n"
        :
        : [area] "r"(area), [cpu] "r"(cpu), [counter] "r"(counter)
        : "rax", "rcx", "memory", "cc"
        : aborted);
    return 1;
aborted:
    return 0;
}

static void count_for_ever(size_t number) {
    struct rseq *area = (struct rseq *)((char *)__builtin_thread_pointer() + __rseq_offset);
    while (!ended) {
        done_in[number] += count_once(area);
        // As long as in the sequence: there a thread cannot be led aside.
        for (volatile int i = 0; i < 4000; i++) continue;
        if (number == 0 && asked) asked = 0, say("alive");
    }
    pthread_barrier_wait(&stop);
}

static void *counting_thread(void *number) {
    sigset_t all;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, NULL);
    count_for_ever((size_t)number);
    return NULL;
}

static void be_in_sequences(void) {
    if (__rseq_size == 0) fail("no rseq");
    pthread_barrier_init(&stop, NULL, COUNTERS);
    for (size_t i = 1; i < COUNTERS; i++) begin(counting_thread, i);
    count_for_ever(0);
    long counted = 0, done = 0;
    for (int i = 0; i < CPUS; i++) counted += counts[i * 8];
    for (int i = 0; i < COUNTERS; i++) done += done_in[i];
    char text[64];
    snprintf(text, sizeof text, "%ld of %ld", counted, done);
    say(counted == done && done > 0 ? "all counted" : text);
    _exit(counted == done ? 0 : 99);
}
#else
static void be_in_sequences(void) { fail("no rseq"); }
#endif

int main(int arguments, char **argument) {
    const char *mode = arguments > 1 ? argument[1] : "pause";
    expect_unknown_frees();
#define IS(name) !strcmp(mode, name)
    uintptr_t code = (uintptr_t)malloc;
    if (IS("reserves")) reserve_below(code);
    if (IS("splits") && madvise((void *)(code & -4096UL), 4096, MADV_DONTDUMP)) fail("cannot split");
    if (IS("locks_all") && mlockall(MCL_CURRENT | MCL_FUTURE)) fail("cannot lock");
    if (IS("twice") && !dlmopen(LM_ID_NEWLM, "libc.so.6", RTLD_NOW)) fail("not loaded");
    if (IS("io_uring")) begin_splice();
    if (IS("queue")) be_told_of_messages();
    if (IS("handles")) signal(SIGUSR2, handle);
    ready();
    struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
    // Nobody is to jump out of the handler before it has said what came.
    sigfillset(&action.sa_mask);
    sigaction(SIGUSR1, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    say("done");
    static const char *waiting[] = {"pause", "reserves", "splits", "locks_all", "twice", "queue", "handles"};
    for (size_t i = 0; i < sizeof waiting / sizeof *waiting; i++) if (IS(waiting[i])) wait_for_signals();
    if (IS("pours")) pour();
    if (IS("busy")) be_busy();
    if (IS("allocates") || IS("io_uring")) allocate_for_ever();
    if (IS("narrow")) be_narrow();
    if (IS("jumps")) jump_for_ever();
    if (IS("sequences")) be_in_sequences();
    if (IS("dead")) {
        begin(other_thread, 0);
        pthread_exit(NULL);
    }
    if (IS("crowd")) {
        for (size_t i = 0; i < 100; i++) begin(sleeping_thread, i);
        allocate_for_ever();
    }
    return 2;
}
