"""Programs whose truth is known, for the scenarios. The first argument names one:

objects        Python objects that are kept
extension      a C extension (a library, the second argument) that leaks

Says how many arenas it has before it begins, and `worked` when it has done enough to be judged. It works on until a line comes, says
how many arenas it has with `done`, and then is quiet.
"""

import ctypes
import json
import os
import select
import sys
import tempfile
import time

TICK_S = 0.01
ENOUGH_TICKS = 750
name = sys.argv[1]
kept = []


def arenas():
    """How many bytes the arenas of small objects have, as the interpreter counts them."""
    with tempfile.TemporaryFile() as text:
        saved = os.dup(2)
        os.dup2(text.fileno(), 2)
        sys._debugmallocstats()
        os.dup2(saved, 2)
        os.close(saved)
        text.seek(0)
        for line in text.read().decode().splitlines():
            # `48 arenas * 1048576 bytes/arena     =           50,331,648`
            if "bytes/arena" in line:
                return int(line.split("=")[1].replace(",", ""))
    return 0


def objects():
    kept.extend((number, str(number)) for number in range(1000))


if name == "extension":
    leak = ctypes.PyDLL(sys.argv[2]).leak
    leak.argtypes = [ctypes.c_size_t]


def extension():
    leak(16 * 1024)
    leak(48 * 1024)


work = {"objects": objects, "extension": extension}[name]
for _ in range(20):
    work()
print(json.dumps({"pid": os.getpid(), "arenas": arenas(), "expect": {"leaks": []}}), flush=True)
if not sys.stdin.buffer.raw.read(16):
    sys.exit(0)
lines = sys.stdin.buffer.raw
started = time.monotonic()
ticks = 0
while not select.select([lines], [], [], 0)[0]:
    work()
    ticks += 1
    if ticks == ENOUGH_TICKS:
        print("worked", flush=True)
    # What was missed is made up for.
    time.sleep(max(0, started + TICK_S * ticks - time.monotonic()))
lines.read(16)
print(f"usage {arenas()}", flush=True)
print("done", flush=True)
while sys.stdin.buffer.raw.read(64):
    pass
os._exit(0)
