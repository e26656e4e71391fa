"""Parses JSON for `cargo xtask bench overhead`: says `ready PID`; for each line on its input, `_ MILLISECONDS`, parses a document for
that long and answers with the nanoseconds of CPU time that parsing it once took."""

import json
import os
import sys
import time

# Strings longer than 512 bytes are malloc's; what is smaller comes from Python's own arenas.
DOCUMENT = json.dumps([{"id": n, "name": f"user {n}", "scores": list(range(20)), "text": "x" * 700} for n in range(300)])

print("ready", os.getpid(), flush=True)
for line in sys.stdin:
    duration_ns = int(line.split()[1]) * 1_000_000
    until_ns = time.monotonic_ns() + duration_ns
    began_ns = time.process_time_ns()
    parsed = 0
    while time.monotonic_ns() < until_ns:
        json.loads(DOCUMENT)
        parsed += 1
    print((time.process_time_ns() - began_ns) / parsed, flush=True)
