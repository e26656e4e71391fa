# CPython 3.11 before 3.11.9: whoever reads SSLSocket.session gets a copy of the session that is never freed.
import socket
import ssl
import sys
import threading
import time

certificate, key = sys.argv[1:]
server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
server.load_cert_chain(certificate, key)
client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
client.check_hostname = False
client.verify_mode = ssl.CERT_NONE
# Version 1.3 has its sessions later.
client.maximum_version = ssl.TLSVersion.TLSv1_2
near, far = socket.socketpair()


def serve():
    server.wrap_socket(far, server_side=True).recv(1)


threading.Thread(target=serve, daemon=True).start()
connection = client.wrap_socket(near)


def remember_session():
    return connection.session


print("ready", flush=True)
while True:
    for _ in range(200):
        remember_session()
    time.sleep(0.02)
