// Eight threads that calculate by means of the allocator, again and again, and compare what comes out with what came out before anybody
// looked on: whatever changes a register, a byte of a block, or leaves a thread hanging, shows. "done" comes at once; then a line
// says what is next:
//
//     go     says "alive" when every thread has got the right result once more
//     fork   makes children that do the same, one after the other; says "forked" when all of them were right
//     exec   becomes this program anew
//     exit   ends, while the threads are at work
#include <pthread.h>
#include <stdatomic.h>
#include <sys/wait.h>

#include "protocol.h"

enum { THREADS = 8, SLOTS = 32, TURNS = 200, CHILDREN = 10 };

static unsigned long right[THREADS];
static _Atomic unsigned long rounds[THREADS];

struct block {
    unsigned char *at;
    size_t size;
};

static void fail(void) {
    say("corrupt");
    _exit(105);
}

// Takes the block's contents into the sum, and writes others.
static unsigned long turn_over(unsigned long sum, struct block *block, size_t known, unsigned char filling) {
    for (size_t i = 0; i < known; i += 7) sum = (sum ^ block->at[i]) * 1099511628211u;
    memset(block->at, filling, block->size);
    return sum;
}

CALLER unsigned long calculate(unsigned long seed) {
    struct block blocks[SLOTS] = {{0}};
    unsigned long sum = seed, chance = seed;
    for (int turn = 0; turn < TURNS; turn++) {
        chance = chance * 6364136223846793005u + 1442695040888963407u;
        struct block *block = &blocks[chance >> 40 & (SLOTS - 1)];
        size_t size = 16 + (chance >> 33) % (chance & 1 << 20 ? 5000 : 200), known = 0;
        switch (chance >> 60 & 3) {
        case 0: free(block->at); block->at = malloc(size); break;
        case 1: free(block->at); block->at = calloc(known = size, 1); break;
        case 2: free(block->at); block->at = aligned_alloc(64, size = (size + 63) / 64 * 64); break;
        case 3:
            known = block->size < size ? block->size : size;
            block->at = realloc(block->at, size);
            break;
        }
        if (!block->at) fail();
        block->size = size;
        sum = turn_over(sum, block, known, (unsigned char)turn);
    }
    for (int i = 0; i < SLOTS; i++) {
        if (blocks[i].at) sum = turn_over(sum, &blocks[i], blocks[i].size, 0);
        free(blocks[i].at);
    }
    return sum;
}

static void *run(void *argument) {
    unsigned long number = (unsigned long)argument;
    for (;;) {
        if (calculate(number) != right[number]) fail();
        rounds[number]++;
    }
    return NULL;
}

static void wait_for_a_round_of_each(void) {
    // That which a thread is at may have begun before.
    unsigned long before[THREADS];
    for (int i = 0; i < THREADS; i++) before[i] = rounds[i];
    for (int i = 0; i < THREADS; i++)
        while (rounds[i] < before[i] + 2) usleep(500);
}

static void fork_and_check(void) {
    for (unsigned long i = 0; i < CHILDREN; i++) {
        int status;
        pid_t child = fork();
        if (child == 0) _exit(calculate(i % THREADS) == right[i % THREADS] ? 0 : 105);
        if (child < 0 || waitpid(child, &status, 0) != child || status != 0) fail();
    }
}

// The first letter of a line that tells it from the others; 0 at the end of the input.
static char next_line(void) {
    char byte, word[16] = {0};
    for (size_t at = 0; read(0, &byte, 1) == 1;) {
        if (byte == '\n') return word[0] == 'e' ? word[2] : word[0];
        if (at < sizeof word) word[at++] = byte;
    }
    return 0;
}

int main(int arguments, char **argument) {
    (void)arguments;
    for (unsigned long i = 0; i < THREADS; i++) right[i] = calculate(i);
    expect_unknown_frees();
    ready();
    for (unsigned long i = 0; i < THREADS; i++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, run, (void *)i) != 0) _exit(106);
    }
    say("done");
    for (;;) {
        switch (next_line()) {
        case 'g': wait_for_a_round_of_each(); say("alive"); break;
        case 'f': fork_and_check(); say("forked"); break;
        case 'e': execv("/proc/self/exe", argument); _exit(106);
        case 'i': exit(0);
        default: wait_for_a_round_of_each(); _exit(0);
        }
    }
}
