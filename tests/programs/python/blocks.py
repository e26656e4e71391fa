"""Objects that are kept and others that are not: so many that only who sees every one of them can be right.

Says how many of its blocks there are more when it is done, as the interpreter counts them.
"""

import json
import os
import sys

OBJECTS = 20_000
kept = [None] * OBJECTS


class Plain:
    __slots__ = ()


def keep():
    for number in range(OBJECTS):
        kept[number] = Plain()


def drop():
    for _ in range(OBJECTS):
        Plain()


def change_size():
    for _ in range(OBJECTS // 10):
        # A list grows within the pools, out of them into malloc, and is gone.
        numbers = []
        for number in range(200):
            numbers.append(number)


def work():
    keep()
    drop()
    change_size()


work()
kept = [None] * OBJECTS
print(json.dumps({"pid": os.getpid(), "expect": {"leaks": []}}), flush=True)
if not sys.stdin.buffer.raw.read(16):
    sys.exit(0)
before = sys.getallocatedblocks()
work()
print(f"more {sys.getallocatedblocks() - before}")
print("done", flush=True)
sys.stdin.buffer.raw.read(16)
