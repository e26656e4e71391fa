# Speaks the protocol of tests/README.md: leaks 50 blocks of 4321 bytes through ctypes.
import ctypes, json, os

libc = ctypes.CDLL(None)
libc.malloc.restype = ctypes.c_void_p
libc.malloc.argtypes = [ctypes.c_size_t]
libc.free.argtypes = [ctypes.c_void_p]
libc.free(libc.malloc(4321))

# The caller is libffi, which is stripped: the test finds the blocks by their module. What Python itself allocates
# cannot be foreseen.
hello = json.dumps({"pid": os.getpid(), "expect": {"leaks": []}})
os.write(1, hello.encode() + b"\n")
os.read(0, 3)
for _ in range(50):
    libc.malloc(4321)
os.write(1, b"done\n")
while os.read(0, 1):
    pass
