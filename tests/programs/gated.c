// Threads that calculate by means of the allocator, compare what comes out with what came out at first, and check each block that they
// have: whatever a gate breaks, shows. Words say what else goes on:
//
//     gated [signals] [births] [begets]
//
//     signals   a signal every half millisecond, to whoever takes it
//     births    threads come and go
//     begets    processes come and go: by fork, by vfork, by posix_spawn
//
// "done" comes at once; then a line says what is next:
//
//     go        says "alive" when everybody has got the right result once more
//     part      makes a child that stays; says "child PID"
//     child     has the child calculate; says "child alive"
//     leave     has the child end; says "child left"
//     exec      becomes this program anew
//     quiet     ends all threads, and says "quiet": nobody holds a block that it made meanwhile
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/time.h>
#include <sys/wait.h>

#include "protocol.h"

enum { THREADS = 8, OTHERS = 4, SLOTS = 32, TURNS = 200 };

extern char **environ;
static unsigned long right[THREADS];
static _Atomic unsigned long rounds[THREADS + OTHERS];
static pthread_t threads[THREADS + OTHERS];
static int running;
// Of such stacks the C library keeps all, and unmaps none that was mapped before a window.
static pthread_attr_t small;
static atomic_int over;
static volatile sig_atomic_t signals;

struct block {
    unsigned char *at;
    size_t size;
    unsigned char fill;
};

static void fail(const char *why) {
    say(why);
    _exit(105);
}

static unsigned long check(unsigned long sum, const struct block *block, size_t bytes) {
    for (size_t i = 0; i < bytes; i++)
        if (block->at[i] != block->fill) fail("corrupt");
    return (sum ^ block->fill ^ bytes) * 1099511628211u;
}

static void fill(struct block *block, unsigned char with) {
    if (!block->at || (uintptr_t)block->at % 16) fail("no block");
    memset(block->at, block->fill = with, block->size);
}

CALLER unsigned long calculate(unsigned long seed) {
    struct block blocks[SLOTS] = {{0}};
    unsigned long sum = seed, chance = seed;
    for (int turn = 0; turn < TURNS; turn++) {
        chance = chance * 6364136223846793005u + 1442695040888963407u;
        struct block *block = &blocks[chance >> 40 & (SLOTS - 1)];
        size_t size = 16 + (chance >> 33) % (chance & 1 << 20 ? 5000 : 200);
        int kind = (int)(chance >> 60 & 7);
        if (block->at) sum = check(sum, block, block->size);
        if (kind < 2 && block->at) {
            unsigned char *at = realloc(block->at, size);
            if (!at) fail("no block");
            block->at = at;
            sum = check(sum, block, block->size < size ? block->size : size);
            block->size = size;
            fill(block, (unsigned char)turn);
            continue;
        }
        free(block->at);
        *block = (struct block){.size = size};
        void *at = NULL;
        switch (kind) {
        case 2: at = aligned_alloc(64, block->size = (size + 63) / 64 * 64); break;
        case 3: if (posix_memalign(&at, 256, size)) at = NULL; break;
        case 4: case 5:
            block->at = at = calloc(size, 1);
            if (!at) fail("no block");
            sum = check(sum, block, size);
            break;
        default: at = malloc(size); break;
        }
        block->at = at;
        fill(block, (unsigned char)turn);
    }
    for (int i = 0; i < SLOTS; i++) {
        if (blocks[i].at) sum = check(sum, &blocks[i], blocks[i].size);
        free(blocks[i].at);
    }
    return sum;
}

static void calculate_right(unsigned long number) {
    if (calculate(number % THREADS) != right[number % THREADS]) fail("wrong");
}

static void *run(void *argument) {
    unsigned long number = (unsigned long)argument;
    for (; !over; rounds[number]++) calculate_right(number);
    return NULL;
}

static void *once(void *argument) {
    calculate_right((unsigned long)argument);
    return NULL;
}

static void *give_birth(void *argument) {
    unsigned long number = (unsigned long)argument;
    for (; !over; rounds[number]++) {
        pthread_t threads[4];
        for (unsigned long i = 0; i < 4; i++)
            if (pthread_create(&threads[i], &small, once, (void *)(rounds[number] + i))) fail("no thread");
        for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
    }
    return NULL;
}

static void collect(pid_t child, const char *why) {
    int status;
    if (child < 0 || waitpid(child, &status, 0) != child || status != 0) fail(why);
}

static void *beget(void *argument) {
    unsigned long number = (unsigned long)argument;
    static char *const words[] = {"true", NULL};
    for (; !over; rounds[number]++) {
        pid_t child = fork();
        if (child == 0) {
            for (unsigned long i = 0; i < 3; i++) calculate_right(i);
            _exit(0);
        }
        collect(child, "a child of fork");
        child = vfork();
        if (child == 0) {
            execv("/bin/true", words);
            _exit(1);
        }
        collect(child, "a child of vfork");
        if (posix_spawn(&child, "/bin/true", NULL, NULL, words, environ)) fail("no spawn");
        collect(child, "a child of posix_spawn");
    }
    return NULL;
}

static void begin(void *(*what)(void *)) {
    if (pthread_create(&threads[running], &small, what, (void *)(unsigned long)running)) fail("no thread");
    running++;
}

static void wait_for_a_round_of_each(void) {
    // That which a thread is at may have begun before.
    unsigned long before[THREADS + OTHERS];
    for (int i = 0; i < running; i++) before[i] = rounds[i];
    for (int i = 0; i < running; i++)
        while (rounds[i] < before[i] + 2) usleep(500);
}

static pid_t child;
static int to_child, from_child;

static void part(void) {
    int to[2], from[2];
    char byte, text[32];
    if (pipe(to) || pipe(from)) fail("no pipe");
    child = fork();
    if (child == 0) {
        close(to[1]), close(from[0]);
        while (read(to[0], &byte, 1) == 1) {
            for (unsigned long i = 0; i < 100; i++) calculate_right(i);
            if (write(from[1], &byte, 1) != 1) _exit(1);
        }
        _exit(0);
    }
    close(to[0]), close(from[1]);
    to_child = to[1], from_child = from[0];
    snprintf(text, sizeof text, "child %d", child);
    say(text);
}

static void ask_child(void) {
    char byte = 'c';
    if (write(to_child, &byte, 1) != 1 || read(from_child, &byte, 1) != 1) fail("the child is gone");
    say("child alive");
}

static void dismiss_child(void) {
    close(to_child);
    collect(child, "the child that stayed");
    say("child left");
}

static void be_quiet(void) {
    over = 1;
    for (int i = 0; i < running; i++) pthread_join(threads[i], NULL);
    running = 0;
    say("quiet");
}

// The first letter of a line; 0 at the end of the input.
static char next_line(void) {
    char byte, first = 0;
    while (read(0, &byte, 1) == 1) {
        if (byte == '\n') return first;
        if (!first) first = byte;
    }
    return 0;
}

static void on_signal(int number) { (void)number; signals++; }

int main(int arguments, char **argument) {
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, 256 << 10);
    // It calculates without a pause, and a tracer is to get a CPU beside it.
    if (nice(10) < 0) fail("nice");
    for (unsigned long i = 0; i < THREADS; i++) right[i] = calculate(i);
    expect_unknown_frees();
    ready();
    for (int i = 0; i < THREADS; i++) begin(run);
    for (int i = 1; i < arguments; i++) {
        int which = argument[i][0] == 's' ? 0 : argument[i][0] == 'b' && argument[i][1] == 'i' ? 1 : 2;
        if (which == 0) {
            struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_RESTART};
            struct itimerval timer = {{0, 500}, {0, 500}};
            sigaction(SIGALRM, &action, NULL);
            setitimer(ITIMER_REAL, &timer, NULL);
        } else {
            for (int j = 0; j < 2; j++) begin(which == 1 ? give_birth : beget);
        }
    }
    say("done");
    for (;;) {
        switch (next_line()) {
        case 'g': wait_for_a_round_of_each(); say("alive"); break;
        case 'p': part(); break;
        case 'c': ask_child(); break;
        case 'l': dismiss_child(); break;
        case 'q': be_quiet(); break;
        case 'e': execv("/proc/self/exe", argument); _exit(106);
        default: wait_for_a_round_of_each(); _exit(0);
        }
    }
}
