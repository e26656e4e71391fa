# A program with nothing in it: it waits for a signal.
.globl _start
_start:
    mov $34, %eax           # pause
    syscall
    jmp _start
.section .note.GNU-stack, "", @progbits
