"""Steps of a picture's way, each a function: verify (or check), compress, edges, watermark, save, log.

A picture is {"name", "image"}: a PPM file (P6, 255) in base64. Only what Python itself has is used; with Pillow in a
requirements.txt the same functions would take any format.
"""
import base64
import hashlib

# The letters of the watermark, five rows of bits each.
LETTERS = {"S": (7, 4, 7, 1, 7), "K": (5, 6, 4, 6, 5), "I": (7, 2, 2, 2, 7), "F": (7, 4, 6, 4, 4)}


class NotAPicture(Exception):
    """What came is no picture."""


def read(picture):
    """Width, height and the bytes of the pixels."""
    try:
        data = base64.b64decode(picture["image"], validate=True)
    except (KeyError, TypeError, ValueError) as e:
        raise NotAPicture("there is no image in base64: %s" % e)
    fields, at = [], 0
    while len(fields) < 4 and at < len(data):
        end = at
        while end < len(data) and not data[end:end + 1].isspace():
            end += 1
        fields.append(data[at:end])
        at = end + 1
    if len(fields) < 4 or fields[0] != b"P6" or fields[3] != b"255" or not fields[1].isdigit() or not fields[2].isdigit():
        raise NotAPicture("%s is no PPM file with 255 levels" % picture.get("name"))
    width, height = int(fields[1]), int(fields[2])
    pixels = data[at:]
    if len(pixels) != width * height * 3:
        raise NotAPicture("%s has %d bytes of pixels instead of %d" % (picture.get("name"), len(pixels), width * height * 3))
    return width, height, pixels


def write(picture, width, height, pixels, step):
    """The picture after a step."""
    data = b"P6\n%d %d\n255\n" % (width, height) + bytes(pixels)
    steps = picture.get("steps", []) + [step]
    return {"name": picture["name"], "image": base64.b64encode(data).decode(), "steps": steps}


def verify(picture):
    """Refuses what is no picture."""
    width, height, pixels = read(picture)
    if width < 4 or height < 4:
        raise NotAPicture("%s is too small" % picture.get("name"))
    return write(picture, width, height, pixels, "verify")


def check(picture):
    """The same without an error: the chain branches on the status."""
    try:
        return {**verify(picture), "status": "ok"}
    except NotAPicture as e:
        return {"name": picture.get("name"), "status": str(e)}


def compress(picture):
    """Half as wide and half as high."""
    width, height, pixels = read(picture)
    w, h = width // 2, height // 2
    out = bytearray()
    for y in range(h):
        for x in range(w):
            for c in range(3):
                four = sum(pixels[((2 * y + j) * width + 2 * x + i) * 3 + c] for j in (0, 1) for i in (0, 1))
                out.append(four // 4)
    return write(picture, w, h, out, "compress")


def edges(picture):
    """Bright where neighbours differ (Sobel)."""
    width, height, pixels = read(picture)
    grey = [sum(pixels[i:i + 3]) // 3 for i in range(0, len(pixels), 3)]

    def at(x, y):
        return grey[min(max(y, 0), height - 1) * width + min(max(x, 0), width - 1)]

    out = bytearray()
    for y in range(height):
        for x in range(width):
            across = sum(k * (at(x + 1, y + j) - at(x - 1, y + j)) for j, k in ((-1, 1), (0, 2), (1, 1)))
            down = sum(k * (at(x + i, y + 1) - at(x + i, y - 1)) for i, k in ((-1, 1), (0, 2), (1, 1)))
            out += bytes([min(255, abs(across) + abs(down))] * 3)
    return write(picture, width, height, out, "edges")


def watermark(picture):
    """The name of the house in the lower right corner."""
    width, height, pixels = read(picture)
    out = bytearray(pixels)
    word = "SKIFF"
    left, top = width - 4 * len(word), height - 6
    for n, letter in enumerate(word):
        for j, row in enumerate(LETTERS[letter]):
            for i in range(3):
                x, y = left + 4 * n + i, top + j
                if row >> (2 - i) & 1 and 0 <= x < width and 0 <= y < height:
                    out[(y * width + x) * 3:(y * width + x) * 3 + 3] = b"\xff\xff\xff"
    return write(picture, width, height, out, "watermark")


def save(picture):
    """What was made, with its digest."""
    width, height, _ = read(picture)
    data = base64.b64decode(picture["image"])
    return {"name": picture["name"], "size": "%dx%d" % (width, height), "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(), "steps": picture["steps"] + ["save"]}


def log(fault):
    """Writes down what went wrong."""
    error = fault.get("error", {})
    text = "%s: %s: %s" % (fault.get("name"), error.get("Error"), error.get("Cause"))
    print(text)
    return {"logged": text}
