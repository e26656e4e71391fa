# protobuf 4.22.1 with upb: who asks a message that is not there for its size leaves 64 bytes behind, each time.
import time
from google.protobuf.type_pb2 import Type

message = Type()


def add_up():
    for _ in range(500):
        message.source_context.ByteSize()


print("ready", flush=True)
while True:
    add_up()
    time.sleep(0.02)
