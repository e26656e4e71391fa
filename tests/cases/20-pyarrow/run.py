# pyarrow 21.0.0: tables are dropped, and Arrow's own allocator, linked into libarrow, keeps their pages. Nothing leaks.
import random
import tempfile
import time
import pyarrow
import pyarrow.dataset

directory = tempfile.mkdtemp()
columns = {f"column{i}": pyarrow.array([random.random() for _ in range(200_000)]) for i in range(6)}
pyarrow.dataset.write_dataset(pyarrow.table(columns), directory, format="parquet")
del columns


def load():
    return pyarrow.dataset.dataset(directory).to_table().num_rows


print("ready", flush=True)
while True:
    load()
    time.sleep(0.2)
