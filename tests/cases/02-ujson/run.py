# ujson 5.11.0 keeps a temporary object of each integer that does not fit in 64 bits.
import time
import ujson

NUMBERS = "[" + ",".join(["-" + "7" * 110] * 400) + "]"


def read_numbers():
    ujson.loads(NUMBERS)


print("ready", flush=True)
while True:
    read_numbers()
    time.sleep(0.02)
