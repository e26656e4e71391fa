"""A WSGI application, each of whose requests leaks: for gunicorn and uWSGI."""
import leak


def application(environ, start_response):
    leak.remember_session()
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"done\n"]
