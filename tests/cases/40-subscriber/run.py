# redis 7.0: one who subscribes and never reads. What is published waits in the server, by the megabyte. usage: run.py PORT
import socket
import subprocess
import sys
import time

port = sys.argv[1]
server = subprocess.Popen(["redis-server", "--port", port, "--bind", "127.0.0.1", "--save", "", "--client-output-buffer-limit",
                           "pubsub 1gb 0 0"], stdout=subprocess.DEVNULL)


def connection():
    while True:
        try:
            return socket.create_connection(("127.0.0.1", int(port)))
        except OSError:
            time.sleep(0.1)


subscriber, publisher = connection(), connection()
subscriber.sendall(b"SUBSCRIBE news\r\n")
subscriber.recv(100)
print("ready", server.pid, flush=True)
message = b"*3\r\n$7\r\nPUBLISH\r\n$4\r\nnews\r\n$4000\r\n" + b"x" * 4000 + b"\r\n"
while True:
    for _ in range(10):
        publisher.sendall(message)
        publisher.recv(100)
    time.sleep(0.02)
