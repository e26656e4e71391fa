# pydantic 2.5.2: what a TypeAdapter of a model that has itself within it has built stays, since the collector does not see through it.
import time
from pydantic import BaseModel, TypeAdapter


class Price(BaseModel):
    pass


class Product(BaseModel):
    parts: list["Product"]
    price: Price


def read_products():
    return TypeAdapter(list[Product]).validate_python([{"parts": [], "price": Price()}])


print("ready", flush=True)
while True:
    for _ in range(10):
        read_products()
    time.sleep(0.02)
