"""As `pairs.c`, from Python functions: pairs of malloc and free through ctypes, with so many functions on the stack.

Says `ready PID`. For each line on its input, `DEPTH MILLISECONDS`, makes pairs for that long with `DEPTH` Python functions on the stack, and
answers with the nanoseconds of CPU time that one pair took. Ends with its input.
"""

import ctypes
import os
import sys
import time

SIZE, BATCH = 40, 64
library = ctypes.PyDLL(None)
malloc, free = library.malloc, library.free
malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
free.restype, free.argtypes = None, [ctypes.c_void_p]


def pairs(until):
    count = 0
    while time.monotonic() < until:
        for _ in range(BATCH):
            free(malloc(SIZE))
        count += BATCH
    return count


def descend(functions, until):
    return pairs(until) if functions <= 0 else descend(functions - 1, until)


print("ready", os.getpid(), flush=True)
for line in sys.stdin:
    depth, milliseconds = map(int, line.split())
    before = time.process_time_ns()
    # Besides these: `pairs`, the last `descend`, and the top level.
    made = descend(depth - 3, time.monotonic() + milliseconds / 1000)
    print((time.process_time_ns() - before) / made, flush=True)
