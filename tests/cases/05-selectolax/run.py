# selectolax 0.3.17: css_matches() of its lexbor parser frees neither the selectors nor what parsed them.
import time
from selectolax.lexbor import LexborHTMLParser

page = LexborHTMLParser("<ul>" + "<li></li>" * 16 + "</ul>")


def has_items():
    return page.css_matches("li")


print("ready", flush=True)
while True:
    for _ in range(10):
        has_items()
    time.sleep(0.05)
