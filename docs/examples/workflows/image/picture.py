#!/usr/bin/env python3
"""Prints a picture as input of the workflow: a disc, 64 pixels wide; with a name as argument it is called so."""
import base64
import json
import sys

SIZE = 64
pixels = bytearray()
for y in range(SIZE):
    for x in range(SIZE):
        inside = (x - SIZE / 2) ** 2 + (y - SIZE / 2) ** 2 < (SIZE / 3) ** 2
        pixels += bytes((220, 60, 40) if inside else (20, 40, 2 * y))
data = b"P6\n%d %d\n255\n" % (SIZE, SIZE) + bytes(pixels)
print(json.dumps({"name": sys.argv[1] if len(sys.argv) > 1 else "disc", "image": base64.b64encode(data).decode()}))
