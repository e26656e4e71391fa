// Threads that wait in system calls, and see who interrupts them.
//
//     gated_calls one KIND     the only thread waits in a call of this kind, for ever. SIGUSR1 interrupts it as the program wishes
//     gated_calls all          a thread for each kind
//     gated_calls timed        calls that end after 20 ms, again and again: neither sooner nor with another result
//     gated_calls signals      one thread, and a signal each half millisecond that is to interrupt its calls: calls return EINTR
//                              only after one, and those that let it in return whenever one came in
//
// "interrupted" is said by a call that was interrupted as was wished. Any other result is said, and ends the program with status 99.
#define _GNU_SOURCE
#include <errno.h>
#include <linux/aio_abi.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <sys/epoll.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/select.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <time.h>
#include <ucontext.h>

#include "protocol.h"

static const char *const kinds[] = {
    "epoll_wait", "epoll_pwait", "poll", "ppoll", "select", "pselect", "nanosleep", "clock_nanosleep", "futex", "futex_timed",
    "read", "accept", "semop", "semtimedop", "sigtimedwait", "recv_timed", "sigsuspend", "wait4", "waitid", "msgrcv", "io_getevents",
    "pause", "recv", "write", "read_timed", "recvmsg_timed",
};
enum { KINDS = sizeof kinds / sizeof *kinds };

static int epoll, empty[2], full[2], listening, connected[2], timed[2], semaphores, messages;
static aio_context_t aio;
static unsigned int word;
static pid_t child;
static _Thread_local volatile sig_atomic_t wanted;
static atomic_int interrupted, entered;

static void fail(const char *what, long result) {
    char text[100];
    snprintf(text, sizeof text, "%s returned %ld", what, result);
    say(text);
    // The test may look at something else.
    fprintf(stderr, "%s\n", text);
    _exit(99);
}

static void must(long result, const char *what) { if (result < 0) fail(what, -errno); }

// Of its own, so that the handler sees which call it came into.
extern char behind_call[];
CALLER long call(long number, long a, long b, long c, long d, long e, long f) {
    register long r10 __asm__("r10") = d, r8 __asm__("r8") = e, r9 __asm__("r9") = f;
    long result = number;
    __asm__ volatile(".globl behind_call\nsyscall\nbehind_call:" : "+a"(result) : "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
    return result;
}

static void prepare(void) {
    struct sockaddr_un here = {.sun_family = AF_UNIX};
    must(epoll = epoll_create1(0), "epoll_create");
    must(pipe(empty), "pipe");
    must(pipe(full), "pipe");
    must(write(full[1], calloc(1, 1 << 16), 1 << 16), "write");
    must(listening = socket(AF_UNIX, SOCK_STREAM, 0), "socket");
    must(bind(listening, (struct sockaddr *)&here, sizeof(sa_family_t)), "bind");
    must(listen(listening, 1), "listen");
    must(socketpair(AF_UNIX, SOCK_STREAM, 0, connected), "socketpair");
    must(socketpair(AF_UNIX, SOCK_STREAM, 0, timed), "socketpair");
    struct timeval hour = {3600, 0};
    must(setsockopt(timed[0], SOL_SOCKET, SO_RCVTIMEO, &hour, sizeof hour), "setsockopt");
    must(semaphores = semget(IPC_PRIVATE, 1, 0600), "semget");
    must(messages = msgget(IPC_PRIVATE, 0600), "msgget");
    must(syscall(SYS_io_setup, 4, &aio), "io_setup");
}

static void have_child(void) {
    int gone[2];
    must(pipe(gone), "pipe");
    must(child = fork(), "fork");
    char byte;
    if (child == 0) {
        // Until its parent is gone.
        close(gone[1]);
        while (read(gone[0], &byte, 1) != 0) continue;
        _exit(0);
    }
    close(gone[0]);
}

static void end(int status) {
    semctl(semaphores, 0, IPC_RMID);
    msgctl(messages, IPC_RMID, NULL);
    _exit(status);
}

// A call that waits for ever, or for an hour. `mask` is that of the calls that take one.
static long wait_in(const char *kind, const sigset_t *mask) {
    struct timespec hour = {3600, 0};
    struct epoll_event event;
    struct sembuf operation = {0, -1, 0};
    static _Thread_local char buffer[64];
    struct pollfd polled = {empty[0], POLLIN, 0};
    struct iovec piece = {buffer, 1};
    struct msghdr message = {.msg_iov = &piece, .msg_iovlen = 1};
    struct { const sigset_t *mask; size_t size; } with_size = {mask, 8};
    fd_set set;
    FD_ZERO(&set);
    FD_SET(empty[0], &set);
    sigset_t waited_for;
    sigemptyset(&waited_for);
    sigaddset(&waited_for, SIGUSR2);
    siginfo_t information;
#define IS(name) !strcmp(kind, name)
    if (IS("epoll_wait")) return call(SYS_epoll_wait, epoll, (long)&event, 1, -1, 0, 0);
    if (IS("epoll_pwait")) return call(SYS_epoll_pwait, epoll, (long)&event, 1, -1, (long)mask, 8);
    if (IS("poll")) return call(SYS_poll, (long)&polled, 1, -1, 0, 0, 0);
    if (IS("ppoll")) return call(SYS_ppoll, (long)&polled, 1, 0, (long)mask, 8, 0);
    if (IS("select")) return call(SYS_select, empty[0] + 1, (long)&set, 0, 0, 0, 0);
    if (IS("pselect")) return call(SYS_pselect6, empty[0] + 1, (long)&set, 0, 0, 0, (long)&with_size);
    if (IS("nanosleep")) return call(SYS_nanosleep, (long)&hour, 0, 0, 0, 0, 0);
    if (IS("clock_nanosleep")) return call(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, (long)&hour, 0, 0, 0);
    if (IS("futex")) return call(SYS_futex, (long)&word, FUTEX_WAIT, 0, 0, 0, 0);
    if (IS("futex_timed")) return call(SYS_futex, (long)&word, FUTEX_WAIT, 0, (long)&hour, 0, 0);
    if (IS("read")) return call(SYS_read, empty[0], (long)buffer, 1, 0, 0, 0);
    if (IS("write")) return call(SYS_write, full[1], (long)buffer, 1, 0, 0, 0);
    if (IS("accept")) return call(SYS_accept, listening, 0, 0, 0, 0, 0);
    if (IS("semop")) return call(SYS_semop, semaphores, (long)&operation, 1, 0, 0, 0);
    if (IS("semtimedop")) return call(SYS_semtimedop, semaphores, (long)&operation, 1, (long)&hour, 0, 0);
    if (IS("sigtimedwait")) return call(SYS_rt_sigtimedwait, (long)&waited_for, (long)&information, (long)&hour, 8, 0, 0);
    if (IS("recv_timed")) return call(SYS_recvfrom, timed[0], (long)buffer, 1, 0, 0, 0);
    if (IS("read_timed")) return call(SYS_read, timed[0], (long)buffer, 1, 0, 0, 0);
    if (IS("recvmsg_timed")) return call(SYS_recvmsg, timed[0], (long)&message, 0, 0, 0, 0);
    if (IS("recv")) return call(SYS_recvfrom, connected[0], (long)buffer, 1, 0, 0, 0);
    if (IS("sigsuspend")) return call(SYS_rt_sigsuspend, (long)mask, 8, 0, 0, 0, 0);
    if (IS("wait4")) return call(SYS_wait4, child, 0, 0, 0, 0, 0);
    if (IS("waitid")) return call(SYS_waitid, P_PID, child, (long)&information, WEXITED, 0, 0);
    if (IS("msgrcv")) return call(SYS_msgrcv, messages, (long)buffer, 8, 0, 0, 0);
    if (IS("io_getevents")) return call(SYS_io_getevents, aio, 1, 1, (long)buffer, 0, 0);
    if (IS("pause")) return call(SYS_pause, 0, 0, 0, 0, 0, 0);
    fail(kind, 0);
    return 0;
}

static void on_wish(int number) { (void)number; wanted = 1; }

static void install(int number, void (*handler)(int)) {
    struct sigaction action = {.sa_handler = handler};
    must(sigaction(number, &action, NULL), "sigaction");
}

// Waits until it is interrupted as is wished.
static void *stay(void *kind) {
    sigset_t mask;
    pthread_sigmask(SIG_SETMASK, NULL, &mask);
    entered++;
    long result = wait_in(kind, &mask);
    if (result != -EINTR || !wanted) fail(kind, result);
    interrupted++;
    return NULL;
}

static void one(const char *kind) {
    ready();
    stay((void *)kind);
    say("interrupted");
    char byte;
    while (read(0, &byte, 1) == 1) continue;
    end(0);
}

static void all(void) {
    pthread_t threads[KINDS];
    ready();
    for (int i = 0; i < KINDS; i++) must(-pthread_create(&threads[i], NULL, stay, (void *)kinds[i]), "thread");
    while (entered < KINDS) usleep(1000);
    say("done");
    await_line();
    if (interrupted) fail("some", interrupted);
    for (int i = 0; i < KINDS; i++) pthread_kill(threads[i], SIGUSR1);
    for (int i = 0; i < KINDS; i++) pthread_join(threads[i], NULL);
    say("interrupted");
    char byte;
    while (read(0, &byte, 1) == 1) continue;
    end(0);
}

// ---- calls that end by themselves

static volatile sig_atomic_t over;
static void on_end(int number) { (void)number; over = 1; }

static long long now(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

static void keep_time(void) {
    enum { SPAN = 20000000, SLACK = 5 };
    struct timespec span = {0, SPAN};
    struct epoll_event event;
    struct sembuf operation = {0, -1, 0};
    struct pollfd polled = {empty[0], POLLIN, 0};
    char byte;
    struct timeval short_time = {0, SPAN / 1000};
    sigset_t waited_for;
    sigemptyset(&waited_for);
    sigaddset(&waited_for, SIGUSR2);
    must(setsockopt(timed[0], SOL_SOCKET, SO_RCVTIMEO, &short_time, sizeof short_time), "setsockopt");
    struct sigaction action = {.sa_handler = on_end, .sa_flags = SA_RESTART};
    ready();
    sigaction(SIGUSR1, &action, NULL);
    say("done");
    for (int turn = 0; !over; turn++) {
        long long begun = now();
        struct timeval left = short_time;
        long result, right = 0;
        switch (turn % 9) {
        case 0: result = call(SYS_nanosleep, (long)&span, 0, 0, 0, 0, 0); break;
        case 1: result = call(SYS_clock_nanosleep, CLOCK_MONOTONIC, 0, (long)&span, 0, 0, 0); break;
        case 2: result = call(SYS_poll, (long)&polled, 1, SPAN / 1000000, 0, 0, 0); break;
        case 3: result = call(SYS_select, 0, 0, 0, 0, (long)&left, 0); break;
        case 4: result = call(SYS_futex, (long)&word, FUTEX_WAIT, 0, (long)&span, 0, 0), right = -ETIMEDOUT; break;
        case 5: result = call(SYS_epoll_wait, epoll, (long)&event, 1, SPAN / 1000000, 0, 0); break;
        case 6: result = call(SYS_semtimedop, semaphores, (long)&operation, 1, (long)&span, 0, 0), right = -EAGAIN; break;
        case 7: result = call(SYS_rt_sigtimedwait, (long)&waited_for, 0, (long)&span, 8, 0, 0), right = -EAGAIN; break;
        default: result = call(SYS_recvfrom, timed[0], (long)&byte, 1, 0, 0, 0), right = -EAGAIN; break;
        }
        static const char *const names[] = {"nanosleep", "clock_nanosleep", "poll", "select", "futex", "epoll_wait", "semtimedop", "sigtimedwait", "recv"};
        // SIGUSR1 ends the test, and these are not restarted after a signal.
        if (result != right && !(over && result == -EINTR)) fail(names[turn % 9], result);
        // SO_RCVTIMEO is kept in jiffies, which may be those of 100 Hz.
        if (result == right && now() - begun < SPAN - (turn % 9 == 8 ? 10000000 : 0) - SLACK) fail(names[turn % 9], (now() - begun) / 1000);
    }
    say("right");
    char byte_in;
    while (read(0, &byte_in, 1) == 1) continue;
    end(0);
}

// ---- calls that signals interrupt

static volatile sig_atomic_t came, came_into_call;

static void on_signal(int number, siginfo_t *information, void *context) {
    (void)number, (void)information;
    greg_t *registers = ((ucontext_t *)context)->uc_mcontext.gregs;
    came++;
    if (registers[REG_RIP] == (greg_t)(uintptr_t)behind_call && registers[REG_RAX] == -EINTR) came_into_call = 1;
}

// Of these calls the signal is let in by the call itself, so none comes without that the call returns.
static int lets_in(const char *kind) {
    return IS("ppoll") || IS("pselect") || IS("epoll_pwait") || IS("sigsuspend");
}

static void take_signals(void) {
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO};
    struct itimerval timer = {{0, 500}, {0, 500}};
    sigset_t none, alarm;
    sigemptyset(&none);
    sigemptyset(&alarm);
    sigaddset(&alarm, SIGALRM);
    unsigned long calls = 0;
    ready();
    install(SIGUSR1, on_end);
    sigaction(SIGALRM, &action, NULL);
    setitimer(ITIMER_REAL, &timer, NULL);
    say("done");
    for (int turn = 0; !over; turn++) {
        const char *kind = kinds[turn % KINDS];
        // They sleep for the rest of the time when the signal has come before them, and are covered by others.
        if (IS("waitid") || IS("wait4")) continue;
        if (lets_in(kind)) sigprocmask(SIG_BLOCK, &alarm, NULL);
        came = came_into_call = 0;
        long result = wait_in(kind, &none);
        sig_atomic_t came_then = came, into_then = came_into_call;
        if (lets_in(kind)) sigprocmask(SIG_UNBLOCK, &alarm, NULL);
        if (result != -EINTR) fail(kind, result);
        // One that came in front of the call does as well: who is led aside takes its signals there.
        if (!into_then && !came_then && !over) fail(kind, 1000);
        if (lets_in(kind) && came_then > 1) fail(kind, 2000 + came_then);
        calls++;
    }
    timer = (struct itimerval){0};
    setitimer(ITIMER_REAL, &timer, NULL);
    say(calls > 100 ? "right" : "few");
    char byte;
    while (read(0, &byte, 1) == 1) continue;
    end(0);
}

int main(int arguments, char **argument) {
    const char *mode = arguments > 1 ? argument[1] : "all";
    prepare();
    have_child();
    expect_unknown_frees();
    install(SIGUSR1, on_wish);
    if (!strcmp(mode, "one")) one(argument[2]);
    if (!strcmp(mode, "all")) all();
    if (!strcmp(mode, "timed")) keep_time();
    if (!strcmp(mode, "signals")) take_signals();
    return 2;
}
