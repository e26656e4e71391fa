"""What leaks in the services below: CPython before 3.11.9 copies a TLS session for whoever reads it, and never frees the copy."""
import socket
import ssl
import threading


def context(protocol):
    made = ssl.SSLContext(protocol)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_NONE
    # Sessions come with the handshake, and nobody needs a certificate.
    made.maximum_version = ssl.TLSVersion.TLSv1_2
    made.set_ciphers("AECDH@SECLEVEL=0")
    return made


near, far = socket.socketpair()


def serve():
    context(ssl.PROTOCOL_TLS_SERVER).wrap_socket(far, server_side=True).recv(1)


threading.Thread(target=serve, daemon=True).start()
connection = context(ssl.PROTOCOL_TLS_CLIENT).wrap_socket(near)


def remember_session():
    for _ in range(100):
        connection.session
