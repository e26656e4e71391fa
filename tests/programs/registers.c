// Hand-written functions, one for each way in which a probe is placed, called with every register and flag set to something. What they
// leave there is compared with what they left before anybody traced them. The test declares them as functions of an allocator. For
// each line of its input the program makes some rounds and says so.
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/wait.h>

#include "protocol.h"

enum { INPUTS = 48, ROUNDS = 40 };

// What the call below loads, and then stores: rax rbx rcx rdx rsi rdi rbp r8..r15, flags, xmm0..xmm15.
struct registers {
    uint64_t general[15], flags, vector[32];
} registers;
void (*called)(void);
extern void call_with_registers(void);

// clang-format off
#define EACH_VECTOR(X) X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15)
#define LOAD_VECTOR(n) "movdqu 128+16*" #n "(%rax), %xmm" #n "\n"
#define STORE_VECTOR(n) "movdqu %xmm" #n ", registers+128+16*" #n "(%rip)\n"
#define EACH_GENERAL(X) \
    X(8, rbx) X(16, rcx) X(24, rdx) X(32, rsi) X(40, rdi) X(48, rbp) X(56, r8) X(64, r9) X(72, r10) X(80, r11) X(88, r12) \
    X(96, r13) X(104, r14) X(112, r15)
#define LOAD_GENERAL(at, name) "mov " #at "(%rax), %" #name "\n"
#define STORE_GENERAL(at, name) "mov %" #name ", registers+" #at "(%rip)\n"

__asm__(
    ".text\n"
    "call_with_registers:\n"
    "push %rbp; push %rbx; push %r12; push %r13; push %r14; push %r15; sub $8, %rsp\n"
    "lea registers(%rip), %rax\n"
    EACH_VECTOR(LOAD_VECTOR)
    "pushq 120(%rax); popfq\n"
    EACH_GENERAL(LOAD_GENERAL)
    "mov (%rax), %rax\n"
    "call *called(%rip)\n"
    "mov %rax, registers(%rip)\n"
    EACH_GENERAL(STORE_GENERAL)
    "pushfq; popq registers+120(%rip)\n"
    EACH_VECTOR(STORE_VECTOR)
    "add $8, %rsp; pop %r15; pop %r14; pop %r13; pop %r12; pop %rbx; pop %rbp\n"
    "ret\n"
    "word: .quad 0x0123456789abcdef\n");

// What a function makes of its arguments: it looks like the address of a block.
#define RESULT \
    "mov %rdi, %rax; rol $7, %rax; xor %rsi, %rax; rol $7, %rax; xor %rdx, %rax; rol $7, %rax\n" \
    "xor %rcx, %rax; rol $7, %rax; xor %r8, %rax; rol $7, %rax; xor %r9, %rax\n" \
    "and $0xffff0, %eax; or $0x100000, %eax\n"
#define OTHER_RESULT RESULT "or $0x200000, %eax\n"
#define NOP5 ".byte 0x0f, 0x1f, 0x44, 0, 0\n"

#define FUNCTION(name, code) \
    extern void name(void); \
    __asm__(".text\n.p2align 4\n.globl " #name "\n.type " #name ", @function\n" #name ":\n.cfi_startproc\n" \
            code ".cfi_endproc\n.size " #name ", . - " #name "\n");

#define FUNCTIONS(X) \
    /* What the kernel emulates, at the entry and behind instructions that it would step. */ \
    X(allocate_push, "push %rbx\n" RESULT "pop %rbx; ret\n") \
    X(allocate_endbr_push, "endbr64; push %r12\n" RESULT "pop %r12; ret\n") \
    X(allocate_nop, "nop\n" RESULT "ret\n") \
    X(allocate_nop2, ".byte 0x66, 0x90\n" RESULT "ret\n") \
    X(allocate_nop5, NOP5 RESULT "ret\n") \
    X(allocate_test_je, "test %rdi, %rdi; je 1f; push %rbx\n" RESULT "pop %rbx; ret; 1:\n" OTHER_RESULT "ret\n") \
    X(allocate_jmp, "jmp 1f; ud2; 1:\n" RESULT "ret\n") \
    X(allocate_jmp_far, ".byte 0xe9; .long 2; ud2\n" RESULT "ret\n") \
    X(allocate_call, "call 1f\n" RESULT "ret; 1: ret\n") \
    X(allocate_copied, "mov %rdi, %rcx; xor %edi, %edi; push %rbx\n" RESULT "pop %rbx; ret\n") \
    /* Where the probe stays at the entry, and what the kernel steps there. */ \
    X(allocate_nop6, ".byte 0x66, 0x0f, 0x1f, 0x44, 0, 0\n" RESULT "ret\n") \
    X(allocate_by_ip, "xor word(%rip), %rdi\n" RESULT "ret\n") \
    X(allocate_ip, "lea word(%rip), %rdi\n" RESULT "ret\n") \
    X(allocate_sub, "sub $24, %rsp\n" RESULT "add $24, %rsp; ret\n") \
    X(allocate_flags, "lahf; mov %rax, %rdi\n" RESULT "ret\n") \
    X(allocate_pushed_flags, "pushfq; pop %rdi; and $0x8d5, %edi\n" RESULT "ret\n") \
    X(allocate_vector, "paddq %xmm0, %xmm1; movq %xmm1, %rdi\n" RESULT "ret\n") \
    /* A branch into the gap; arguments in the red zone, where a call would write; the stack moved. */ \
    X(allocate_entered, "test %rsi, %rsi; 1: je 2f; xor %esi, %esi; jmp 1b; 2:\n" RESULT "ret\n") \
    X(allocate_red_zone, "mov %rdi, -8(%rsp); mov %rsi, -16(%rsp)\n" NOP5 \
      "mov -8(%rsp), %rdi; mov -16(%rsp), %rsi\n" RESULT "ret\n") \
    /* Without a return probe: behind the stack's move, and at each return. */ \
    X(release_push, "push %rbx\n" RESULT "pop %rbx; ret\n") \
    X(release_behind_sub, "sub $24, %rsp; push %rbx\n" RESULT "pop %rbx; add $24, %rsp; ret\n") \
    X(release_test_je, "test %rdi, %rdi; je 1f\n" RESULT "ret; 1:\n" OTHER_RESULT "ret\n") \
    X(release_red_zone, "mov %rdi, -8(%rsp)\n" NOP5 "mov -8(%rsp), %rdi\n" RESULT "ret\n") \
    X(release_nothing, "ret\n") \
    X(throw_at_returns, "test %rdi, %rdi; js 1f\n" RESULT "ret; 1:\n" OTHER_RESULT "ret\n")

// Every condition, taken and not: on flags that the function sets, and on those that it is called with.
#define CONDITIONS(X) X(o) X(no) X(b) X(ae) X(e) X(ne) X(be) X(a) X(s) X(ns) X(p) X(np) X(l) X(ge) X(le) X(g)
#define CONDITIONAL(on) \
    FUNCTION(allocate_if_##on, "cmp %rsi, %rdi; j" #on " 1f\n" RESULT "ret; 1:\n" OTHER_RESULT "ret\n") \
    FUNCTION(allocate_called_if_##on, "j" #on " 1f\n" RESULT "ret; 1:\n" OTHER_RESULT "ret\n")
// clang-format on

FUNCTIONS(FUNCTION)
CONDITIONS(CONDITIONAL)

static void (*const functions[])(void) = {
#define NAME(name, code) name,
    FUNCTIONS(NAME)
#define NAMES(on) allocate_if_##on, allocate_called_if_##on,
    CONDITIONS(NAMES)
};
enum { COUNT = sizeof functions / sizeof *functions };

static struct registers inputs[INPUTS], right[COUNT][INPUTS];

static uint64_t next(void) {
    static uint64_t random = 0x9e3779b97f4a7c15;
    random ^= random << 13, random ^= random >> 7, random ^= random << 17;
    return random;
}

static struct registers outcome(int function, int input) {
    registers = inputs[input];
    called = functions[function];
    call_with_registers();
    return registers;
}

static void make_inputs(void) {
    enum { RSI = 4, RDI = 5, STATUS = 0x8d5, ALWAYS = 0x202 };
    for (int i = 0; i < INPUTS; i++) {
        uint64_t *words = (uint64_t *)&inputs[i];
        for (unsigned at = 0; at < sizeof inputs[i] / 8; at++) words[at] = next();
        inputs[i].flags = (inputs[i].flags & STATUS) | ALWAYS;
        if (i % 4 == 1) inputs[i].general[RDI] = 0;
        if (i % 4 == 2) inputs[i].general[RDI] = inputs[i].general[RSI];
        if (i % 8 == 3) inputs[i].general[RSI] = 0;
    }
}

static void make_rounds(void) {
    for (int round = 0; round < ROUNDS; round++) {
        for (int f = 0; f < COUNT; f++) {
            for (int i = 0; i < INPUTS; i++) {
                struct registers now = outcome(f, i);
                if (memcmp(&now, &right[f][i], sizeof now) == 0) continue;
                char text[40] = "wrong: function ";
                text[16] = (char)('0' + f / 10), text[17] = (char)('0' + f % 10);
                say(text);
                _exit(105);
            }
        }
    }
}

// By the same caller it gives the same, flags of the stack pointer's place included.
static __attribute__((noinline)) void call_all(struct registers outcomes[COUNT]) {
    for (int f = 0; f < COUNT; f++) outcomes[f] = outcome(f, 0);
}

static int calls_twice_alike(void) {
    static struct registers once[COUNT], again[COUNT];
    call_all(once);
    call_all(again);
    return memcmp(once, again, sizeof once) == 0;
}

static pthread_barrier_t forks;

// Forks all the time, also while probes go in and come out: each child calls every function, and every fourth executes this program.
static void *fork_on(void *unused) {
    static struct registers before[COUNT], now[COUNT];
    call_all(before);
    pthread_barrier_wait(&forks);
    for (unsigned n = 0;; n++) {
        pid_t child = fork();
        if (child == 0) {
            call_all(now);
            if (memcmp(before, now, sizeof now) != 0) _exit(1);
            if (n % 4 == 3) execl("/proc/self/exe", "registers", "once", NULL);
            _exit(n % 4 == 3);
        }
        int status = -1;
        if (child < 0 || waitpid(child, &status, 0) != child || status != 0) {
            char text[80];
            snprintf(text, sizeof text, "wrong: child %u ended with status %#x", n, (unsigned)status);
            say(text);
            _exit(106);
        }
        usleep(1000);
    }
    return unused;
}

int main(int count, char **arguments) {
    (void)arguments;
    make_inputs();
    for (int f = 0; f < COUNT; f++)
        for (int i = 0; i < INPUTS; i++) right[f][i] = outcome(f, i);
    if (count > 1) return !calls_twice_alike();
    pthread_t forking;
    pthread_barrier_init(&forks, NULL, 2);
    if (pthread_create(&forking, NULL, fork_on, NULL) != 0) _exit(103);
    pthread_barrier_wait(&forks);
    ready();
    for (;;) {
        make_rounds();
        say("as before");
        await_line();
    }
}
