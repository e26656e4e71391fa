// Nine threads inside the allocator (own_allocator.c) at one time whose numbers fall into one set of the tracer's records,
// which has room for eight: `record_set` in tracer-ebpf/src/thread.rs.
#include <pthread.h>
#include <semaphore.h>

#include "protocol.h"

extern void (*volatile own_allocator_interrupt)(void);

enum { SETS = 1024, THREADS = 9, MOST_ATTEMPTS = 100 * SETS };

static sem_t decided;
static pthread_barrier_t inside, everyone;
static pthread_mutex_t alone = PTHREAD_MUTEX_INITIALIZER;
static int members, set;

static int set_of_this_thread(void) {
    unsigned tid = (unsigned)gettid();
    return (int)((tid ^ tid >> 10) % SETS);
}

static void wait_until_all_are_inside(void) { pthread_barrier_wait(&inside); }

CALLER void *allocate_in_a_crowd(void) {
    void *block = malloc(100);
    KEEP(block);
    return block;
}

CALLER void leak_alone(void) { KEEP(malloc(50)); }

static void *member(void *unused) {
    int mine = set_of_this_thread();
    int fits = members == 0 || mine == set;
    if (fits) {
        set = mine;
        members++;
    }
    sem_post(&decided);
    if (!fits) return unused;
    pthread_barrier_wait(&everyone);
    void *block = allocate_in_a_crowd();
    pthread_barrier_wait(&everyone);
    pthread_barrier_wait(&everyone);
    pthread_mutex_lock(&alone);
    free(block);
    leak_alone();
    pthread_mutex_unlock(&alone);
    pthread_barrier_wait(&everyone);
    pause();
    return unused;
}

static void gather(void) {
    for (int attempt = 0; members < THREADS; attempt++) {
        pthread_t thread;
        int before = members;
        if (attempt == MOST_ATTEMPTS || pthread_create(&thread, NULL, member, NULL) != 0) _exit(103);
        sem_wait(&decided);
        if (members == before) pthread_join(thread, NULL);
    }
}

int main(void) {
    sem_init(&decided, 0, 0);
    pthread_barrier_init(&inside, NULL, THREADS);
    pthread_barrier_init(&everyone, NULL, THREADS + 1);
    gather();
    expect_native("leak_alone", "malloc", THREADS, 50);
    expect_freed(THREADS - 1, (THREADS - 1) * 100);
    expect_unmatched(1);  // of the one whose allocation is lost
    ready();
    own_allocator_interrupt = wait_until_all_are_inside;
    pthread_barrier_wait(&everyone);
    pthread_barrier_wait(&everyone);
    own_allocator_interrupt = NULL;
    pthread_barrier_wait(&everyone);
    pthread_barrier_wait(&everyone);
    done();
}
