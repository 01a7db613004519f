"""A picture made of lines and words, and its PNG (RFC 2083), of nothing but the standard library: a plot in a report needs no
more."""

import struct
import zlib
from pathlib import Path

WHITE, BLACK, GREY, BLUE, RED = (255, 255, 255), (0, 0, 0), (205, 205, 205), (30, 90, 200), (200, 50, 40)
Colour = tuple[int, int, int]
GLYPH_WIDTH, GLYPH_HEIGHT = 3, 5
# Rows from top to bottom, three bits each.
_GLYPHS = {
    "0": "75557", "1": "26227", "2": "71747", "3": "71717", "4": "55711", "5": "74717", "6": "74757", "7": "71122",
    "8": "75757", "9": "75717", "A": "25755", "B": "65656", "C": "34443", "D": "65556", "E": "74647", "F": "74644",
    "G": "34553", "H": "55755", "I": "72227", "J": "11152", "K": "55655", "L": "44447", "M": "57755", "N": "65555",
    "O": "25552", "P": "65644", "Q": "25563", "R": "65655", "S": "34216", "T": "72222", "U": "55557", "V": "55552",
    "W": "55775", "X": "55255", "Y": "55222", "Z": "71247", ".": "00002", ",": "00024", ":": "02020", "-": "00700",
    "+": "02720", "=": "07070", "/": "11244", "%": "51245", "(": "12221", ")": "42224", "*": "05250", "~": "00360",
}  # fmt: skip


class Picture:
    """Of `width` times `height` pixels, white; (0, 0) is at the top left. What lies outside is left out."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self._pixels = bytearray(bytes(WHITE) * (width * height))

    def dot(self, x: int, y: int, colour: Colour, size: int = 1) -> None:
        """A square about (x, y)."""
        low = size // 2
        for row in range(max(0, y - low), min(self.height, y - low + size)):
            for column in range(max(0, x - low), min(self.width, x - low + size)):
                at = 3 * (row * self.width + column)
                self._pixels[at : at + 3] = bytes(colour)

    def line(self, x0: int, y0: int, x1: int, y1: int, colour: Colour, size: int = 1) -> None:
        steps = max(abs(x1 - x0), abs(y1 - y0), 1)
        for n in range(steps + 1):
            self.dot(round(x0 + (x1 - x0) * n / steps), round(y0 + (y1 - y0) * n / steps), colour, size)

    def text(self, x: int, y: int, words: str, colour: Colour = BLACK, scale: int = 2) -> None:
        """In capitals, its top left corner at (x, y). What has no glyph is a blank."""
        for letter in words.upper():
            for row, bits in enumerate(_GLYPHS.get(letter, "00000")):
                for column in range(GLYPH_WIDTH):
                    if int(bits) >> (GLYPH_WIDTH - 1 - column) & 1:
                        for dx in range(scale):
                            for dy in range(scale):
                                self.dot(x + column * scale + dx, y + row * scale + dy, colour)
            x += (GLYPH_WIDTH + 1) * scale

    def save(self, path: Path) -> None:
        """Raises OSError."""
        row = 3 * self.width
        raw = b"".join(b"\0" + self._pixels[at : at + row] for at in range(0, len(self._pixels), row))
        header = struct.pack(">IIBBBBB", self.width, self.height, 8, 2, 0, 0, 0)
        path.write_bytes(
            b"\x89PNG\r\n\x1a\n"
            + _chunk(b"IHDR", header)
            + _chunk(b"IDAT", zlib.compress(raw, 9))
            + _chunk(b"IEND", b"")
        )


def text_width(words: str, scale: int = 2) -> int:
    return len(words) * (GLYPH_WIDTH + 1) * scale


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
