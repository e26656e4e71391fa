# Speaks the protocol of tests/README.md: two workers, forked by multiprocessing, leak 50 blocks of 4321 bytes each.
import ctypes, json, multiprocessing, os

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.free(libc.malloc(4321))


def leak():
    for _ in range(50):
        libc.malloc(4321)


# The caller is libffi, which is stripped: the test finds the blocks by their module. What Python itself allocates
# cannot be foreseen.
hello = json.dumps({"pid": os.getpid(), "expect": {"leaks": []}})
os.write(1, hello.encode() + b"\n")
os.read(0, 3)
context = multiprocessing.get_context("fork")
workers = [context.Process(target=leak) for _ in range(2)]
for worker in workers:
    worker.start()
for worker in workers:
    worker.join()
os.write(1, b"done\n")
while os.read(0, 1):
    pass
