"""Records stacks as gdb sees them, for the comparison in unwind_gdb.rs.

Runs inside gdb. At every stop at the breakpoint: the registers and the return addresses that gdb finds, the bytes of the
stacks they lie on, and the mappings. One JSON object a line.
"""

import json
import os

import gdb

MOST_FRAMES = 127
# A frame's words lie at its stack pointer; where gdb loses the way, the walk may find more above.
BELOW, ABOVE = 4096, 65536


def mappings():
    with open(f"/proc/{gdb.selected_inferior().pid}/maps") as maps:
        return maps.read()


def frames():
    """The frames that are on the stack, leaf first: (pc, sp, name). Inlined and jumped-to functions have none."""
    found, frame = [], gdb.newest_frame()
    while frame is not None and len(found) <= MOST_FRAMES:
        if frame.type() not in (gdb.INLINE_FRAME, gdb.TAILCALL_FRAME):
            found.append((frame.pc(), int(frame.read_register("rsp")), frame.name()))
        try:
            frame = frame.older()
        except gdb.error:
            break
    return found


def stack_bytes(maps, pointers):
    """The part of each mapping that the stack pointers reach: [address, hex]."""
    parts = []
    for line in maps.splitlines():
        start, end = (int(address, 16) for address in line.split()[0].split("-"))
        inside = [pointer for pointer in pointers if start <= pointer < end]
        if inside:
            low = max(start, min(inside) - BELOW)
            high = min(end, max(inside) + ABOVE)
            parts.append([low, gdb.selected_inferior().read_memory(low, high - low).tobytes().hex()])
    return parts


def record(out):
    found, maps = frames(), mappings()
    leaf = gdb.newest_frame()
    sp, bp = (int(leaf.read_register(name)) & (2**64 - 1) for name in ("rsp", "rbp"))
    json.dump(
        {
            "ip": leaf.pc(),
            "sp": sp,
            "bp": bp,
            "frames": [pc for pc, _, _ in found],
            "names": [name for _, _, name in found],
            "stacks": stack_bytes(maps, [sp] + [pointer for _, pointer, _ in found]),
            "maps": maps,
        },
        out,
    )
    out.write("\n")


def main():
    for setting in (
        "pagination off",
        "confirm off",
        "breakpoint pending on",
        "backtrace past-main on",
        "backtrace past-entry on",
        "debuginfod enabled off",
        "print thread-events off",
    ):
        gdb.execute(f"set {setting}")
    for signal in os.environ.get("PASS_SIGNALS", "").split():
        gdb.execute(f"handle {signal} nostop noprint pass")
    breakpoint = gdb.Breakpoint(os.environ["BREAK_AT"])
    breakpoint.silent = True
    every = int(os.environ.get("EVERY", "1"))
    with open(os.environ["RECORD_TO"], "w") as out:
        breakpoint.ignore_count = int(os.environ.get("SKIP", "0"))
        gdb.execute("run")
        for _ in range(int(os.environ["STACKS"])):
            if not gdb.selected_inferior().pid:
                break
            record(out)
            breakpoint.ignore_count = every - 1
            gdb.execute("continue")
    if gdb.selected_inferior().pid:
        gdb.execute("kill")


main()
