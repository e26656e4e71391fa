"""A task for Celery that leaks, and who asks for it: python3 tasks.py."""
import time

import celery

app = celery.Celery("tasks", broker="redis://localhost:8974")


@app.task(ignore_result=True)
def remember():
    import leak
    leak.remember_session()


if __name__ == "__main__":
    while True:
        remember.delay()
        time.sleep(0.01)
