# numpy 1.23: nested_iters keeps the arrays that it has made of its arguments when it refuses these.
import numpy

print("ready", flush=True)
while True:
    try:
        numpy.nested_iters([1.5, [2, 3]], [[1], [2]])
    except ValueError:
        pass
