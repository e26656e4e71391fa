"""Allocates native memory from Python in every way that the names of functions are told of, and states its own stack each time.

    python3 functions.py FILE [ROUNDS [drop]]

Leaves in FILE, for each allocation, `[[FUNCTION, FILE, LINE], ...]`, innermost function first. It calls `malloc` with the lock of the
interpreter held and without it, in several threads. Code that was made as the program runs is kept, or dropped as soon as it has run.
"""

import asyncio
import contextlib
import ctypes
import functools
import importlib
import importlib.machinery
import itertools
import json
import os
import re
import sys
import tempfile
import threading
import types

SIZE = 4321
rounds = int(sys.argv[2]) if len(sys.argv) > 2 else 20
with_lock, without_lock = ctypes.PyDLL(None).malloc, ctypes.CDLL(None).malloc
for malloc in with_lock, without_lock:
    malloc.restype, malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
drops = sys.argv[3:] == ["drop"]
stacks = []
kept = []
tells = False


def sites(frame):
    """What the interpreter says of a frame and its callers."""
    told = []
    while frame:
        code = frame.f_code
        told.append((getattr(code, "co_qualname", code.co_name), code.co_filename, frame.f_lineno))
        frame = frame.f_back
    return told


def tell(frame):
    if tells:
        stacks.append(sites(frame))


def keep(code):
    if not drops:
        kept.append(code)
    return code


load = importlib.machinery.SourceFileLoader.get_code
importlib.machinery.SourceFileLoader.get_code = lambda self, name: keep(load(self, name))


# Each on one line: so both calls are at the same place.
def leak_with_lock():
    with_lock(SIZE if tells else 1); tell(sys._getframe())


def leak_without_lock():
    without_lock(SIZE if tells else 1); tell(sys._getframe())


def leak():
    leak_with_lock()
    leak_without_lock()


def recurse(depth):
    if depth:
        return recurse(depth - 1) + 1
    leak()
    return 0


def hot(depth):
    # Run often, so that the interpreter has specialised what it does.
    return leak() if depth == 0 else hot(depth - 1)


def generate():
    leak()
    yield 1
    yield from inner()
    leak()


def inner():
    leak()
    yield 2


async def coroutine(depth):
    if depth:
        return await coroutine(depth - 1)
    await asyncio.sleep(0)
    leak()
    return 1


async def asynchronous():
    async for _ in ticks():
        leak()
    async with Managed():
        leak()
    await asyncio.gather(coroutine(0), coroutine(3))


async def ticks():
    leak()
    yield 1


class Managed:
    async def __aenter__(self):
        leak()

    async def __aexit__(self, *_):
        leak()

    def __enter__(self):
        leak()

    def __exit__(self, *_):
        leak()


class Meta(type):
    def __call__(cls, *arguments):
        leak()
        return super().__call__(*arguments)


class Thing(metaclass=Meta):
    def __init__(self):
        leak()

    def __getattr__(self, name):
        leak()
        return name

    def __add__(self, other):
        leak()
        return self

    def __len__(self):
        leak()
        return 1

    def __eq__(self, other):
        leak()
        return True

    def __call__(self):
        leak()

    def __getitem__(self, at):
        leak()
        if at > 1:
            raise IndexError
        return at

    def __del__(self):
        leak()

    @property
    def value(self):
        leak()

    @staticmethod
    def static():
        leak()

    @classmethod
    def of_class(cls):
        leak()


def things():
    thing = Thing()
    thing.anything
    thing + thing
    len(thing)
    thing in [Thing()]
    thing()
    list(thing)
    thing.value
    thing.static()
    thing.of_class()
    getattr(thing, "other")
    functools.partial(thing)()


def decorated(function):
    @functools.wraps(function)
    def wrapper(*arguments):
        leak()
        return function(*arguments)

    return wrapper


@decorated
def behind():
    leak()


@functools.lru_cache(maxsize=0)
def cached():
    leak()


@contextlib.contextmanager
def context():
    leak()
    yield
    leak()


def caught():
    try:
        with context(), Managed():
            raise ValueError
    except ValueError:
        leak()
    finally:
        leak()


COMPARE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)


@COMPARE
def compare(a, b):
    leak()
    return 0


def called_by_c():
    numbers = (ctypes.c_int * 3)(1, 2, 3)
    ctypes.CDLL(None).qsort(numbers, 2, 4, compare)
    ctypes.PyDLL(None).qsort(numbers, 2, 4, compare)


def called_back():
    sorted([1], key=lambda _: leak())
    list(map(lambda _: leak(), [1]))
    functools.reduce(lambda _, __: leak(), [1, 2])
    re.sub("x", lambda _: leak() or "", "x")
    [leak() for _ in "a"]
    {leak() for _ in "a"}
    list(leak() for _ in "a")
    max([1], key=lambda _: leak() or 0)
    json.dumps(object(), default=lambda _: leak())
    type("Made", (), {"__init__": lambda self: leak()})()


def made():
    exec(keep(compile("def f():\n  leak()\n\nf()", "<made>", "exec")), {"leak": leak})
    eval(keep(compile("[leak(), (lambda: leak())()]", "<eval>", "eval")))

    class Body:
        leak()

        def method(self):
            leak()

    Body().method()


def größe():
    関数()


def 関数():
    leak()


def long():
    x = [
        1,

        leak(),
    ]
    return (
        x,
        functools.partial(
            leak
        )(),
    )


class Initialised:
    def __init__(self):
        leak()


def many_variables():
    a = b = c = d = e = f = g = h = i = j = k = l = m = n = o = p = 0
    leak()
    return a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, recurse(1)


numbers = itertools.count()


def modules():
    """Modules come and go: their code is freed, and what comes later is at the same addresses."""
    with tempfile.TemporaryDirectory() as directory:
        sys.path.insert(0, directory)
        for _ in range(3):
            number = next(numbers)
            name = f"module_{number}"
            with open(os.path.join(directory, name + ".py"), "w") as text:
                text.write(f"import __main__\ndef f_{number}():\n    __main__.leak()\n" + "\n" * (number % 7) + f"f_{number}()\n")
            importlib.invalidate_caches()
            importlib.import_module(name)
            del sys.modules[name]
        sys.path.remove(directory)


def module_of_strings():
    for _ in range(5):
        number = next(numbers)
        module = types.ModuleType("made")
        text = f"def g_{number}(leak):\n    leak()\n"
        exec(keep(compile(text, f"/made/{number}.py", "exec")), module.__dict__)
        getattr(module, f"g_{number}")(leak)


def once():
    leak()
    recurse(1)
    recurse(25)
    hot(6)
    for _ in generate():
        leak()
    list(generate())
    asyncio.run(asynchronous())
    things()
    behind()
    cached()
    caught()
    called_by_c()
    called_back()
    made()
    größe()
    long()
    many_variables()
    Initialised()
    modules()
    module_of_strings()


def worker():
    for _ in range(max(rounds // 2, 1)):
        once_in_thread()


def once_in_thread():
    leak()
    recurse(5)
    list(generate())
    behind()
    called_back()
    module_of_strings()


def threads():
    started = [threading.Thread(target=worker) for _ in range(3)]
    for thread in started:
        thread.start()
    for thread in started:
        thread.join()


for _ in range(20):
    once()
os.write(1, json.dumps({"pid": os.getpid(), "expect": {"leaks": []}}).encode() + b"\n")
os.read(0, 3)
tells = True
for _ in range(rounds):
    once()
threads()
tells = False
with open(sys.argv[1], "w") as text:
    json.dump(stacks, text)
os.write(1, b"done\n")
while os.read(0, 1):
    pass
os._exit(0)
