"""Checks signatures of ECDSA on P-256, for releases of the agent. [pure]

Apart from `edgelite.p256`, which every resident agent has in memory. Runs on MicroPython.
"""

import hashlib

from edgelite.p256 import GX, GY, B, N, P, add, affine, multiply


def verify(point: bytes, message: bytes, signature: bytes) -> bool:
    """Is this the signature (r and s, 32 bytes each) of the message by the key whose `public_point` is given? ECDSA with SHA-256
    (FIPS 186-5, 6.4.2). Everything here is public, so that time may tell of it. False for a key that is none."""
    if len(point) != 65 or point[0] != 4 or len(signature) != 64:
        return False
    x, y = int.from_bytes(point[1:33], "big"), int.from_bytes(point[33:], "big")
    r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
    on_curve = x < P and y < P and (y * y - (x * x * x - 3 * x + B)) % P == 0
    if not on_curve or not 0 < r < N or not 0 < s < N:
        return False
    inverse = pow(s, N - 2, N)
    z = int.from_bytes(hashlib.sha256(message).digest(), "big")
    found = add(multiply(z * inverse % N, (GX, GY, 1)), multiply(r * inverse % N, (x, y, 1)))
    return found[2] != 0 and affine(found)[0] % N == r
