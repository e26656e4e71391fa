# PyMuPDF 1.25.0: a pixmap that is made of one in another colour space leaks the converted picture.
import time
import pymupdf

grey = pymupdf.Pixmap(pymupdf.csGRAY, pymupdf.IRect(0, 0, 320, 240), False)
grey.clear_with(90)


def convert():
    pymupdf.Pixmap(pymupdf.csRGB, grey)


print("ready", flush=True)
while True:
    convert()
    time.sleep(0.04)
