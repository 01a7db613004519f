"""What the algorithms of keys are called in settings, records and messages. [pure]

Apart from `security.keys`, so that who only names them need not load a library of cryptography.
"""

from typing import Final

P256: Final = "ecdsa-p256"
P384: Final = "ecdsa-p384"
ED25519: Final = "ed25519"
RSA2048: Final = "rsa-2048"
RSA3072: Final = "rsa-3072"
ALGORITHMS: Final = (P256, P384, ED25519, RSA2048, RSA3072)
