"""Writes a GGUF file whose matrices of Q4_1 are Q4_0 instead, rounded as llama.cpp rounds (quantize_row_q4_0_ref).

    python3 requantize.py MODEL.gguf OUT.gguf
"""

import struct
import sys

import numpy as np

SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
Q4_0, Q4_1 = 2, 3


class Reader:
    def __init__(self, data):
        self.data, self.offset = data, 0

    def number(self, form):
        value = struct.unpack_from("<" + form, self.data, self.offset)[0]
        self.offset += struct.calcsize("<" + form)
        return value

    def text(self):
        length = self.number("Q")
        self.offset += length
        return self.data[self.offset - length:self.offset]

    def skip(self, ty):
        if ty == 8:
            self.text()
        elif ty == 9:
            inner, count = self.number("I"), self.number("Q")
            for _ in range(count):
                self.skip(inner)
        else:
            self.offset += SIZES[ty]


def main(source, target):
    data = bytearray(open(source, "rb").read())
    reader = Reader(data)
    reader.offset = 8
    tensors, keys = reader.number("Q"), reader.number("Q")
    for _ in range(keys):
        reader.text()
        reader.skip(reader.number("I"))
    entries = []
    for _ in range(tensors):
        reader.text()
        shape = [reader.number("Q") for _ in range(reader.number("I"))]
        position = reader.offset
        entries.append((position, reader.number("I"), reader.number("Q"), int(np.prod(shape))))
    start = (reader.offset + 31) // 32 * 32
    ends = sorted(entry[2] for entry in entries) + [len(data) - start]
    parts, offset = [], 0
    for position, ty, begin, elements in sorted(entries, key=lambda entry: entry[2]):
        end = next(end for end in ends if end > begin)
        part = bytes(data[start + begin:start + end])
        if ty == Q4_1:
            part, ty = q4_0(np.frombuffer(part, np.uint8, elements // 32 * 20).reshape(-1, 20)), Q4_0
        struct.pack_into("<IQ", data, position, ty, offset)
        part += bytes(-len(part) % 32)
        parts.append(part)
        offset += len(part)
    with open(target, "wb") as out:
        out.write(data[:start] + b"".join(parts))


def q4_0(blocks):
    scale, minimum = (blocks[:, offset:offset + 2].copy().view("<f2").astype(np.float32) for offset in (0, 2))
    weights = np.concatenate([blocks[:, 4:] & 15, blocks[:, 4:] >> 4], 1) * scale + minimum
    most = np.take_along_axis(weights, np.abs(weights).argmax(1)[:, None], 1)
    scale = most / -8
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
    values = np.minimum(15, (weights * inverse + 8.5).astype(np.uint8))
    packed = values[:, :16] | values[:, 16:] << 4
    return np.concatenate([scale.astype("<f2").view(np.uint8), packed], 1).tobytes()


main(*sys.argv[1:])
