# A 32-bit program without a library: waits for signals.
.globl _start
_start:
    mov $29, %eax        # pause
    int $0x80
    jmp _start
