"""Ways in which a file can be damaged, as a function of a number."""

import random


def cut(content: bytes, number: int) -> bytes:
    """The beginning of a file, up to a random byte."""
    return content[: random.Random(number).randrange(len(content))]  # noqa: S311


def flip(content: bytes, number: int) -> bytes:
    """A file with one random bit changed."""
    rng = random.Random(number)  # noqa: S311
    changed = bytearray(content)
    changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def scramble(content: bytes, number: int) -> bytes:
    """A file after a few random edits: bits changed, bytes replaced by telling ones, pieces removed or repeated."""
    rng = random.Random(number)  # noqa: S311
    changed = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        at, length = rng.randrange(len(changed) + 1), rng.randint(1, 16)
        kind = rng.randrange(6)
        if kind == 0 and changed:
            changed[min(at, len(changed) - 1)] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[at : at + length] = rng.choice([b"\0", b"\xff", b"\x7f", b"9", b"-", b"{", b"["]) * length
        elif kind == 2:
            del changed[at : at + length]
        elif kind == 3:
            changed[at:at] = changed[at : at + length]
        elif kind == 4:
            changed[at:at] = rng.randbytes(length)
        else:
            del changed[at:]
    return bytes(changed)
