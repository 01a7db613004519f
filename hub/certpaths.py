"""Paths of the API that certificates and keys are looked after by, for server and commands. [pure]"""

from typing import Final

from hub.objects import REVOCATIONS

CA_PATH: Final = "/cloudhub/ca"
"""GET: roots, phases, and what a rotation waits for."""
ROTATION_PATH: Final = "/cloudhub/ca/rotation"
"""POST: begins one, where none is under way."""
CERTIFICATES_PATH: Final = "/cloudhub/certificates"
"""GET: what expires when."""
SIGNERS_PATH: Final = "/cloudhub/tokenkeys"
"""GET: the keys of service account tokens, by id, and until when each verifies."""
SIGNERS_ROTATION_PATH: Final = "/cloudhub/tokenkeys/rotation"
"""POST: adds one that signs from then on; with ?void=true in place of all others."""
REVOCATIONS_PATH: Final = f"/apis/{REVOCATIONS.group}/{REVOCATIONS.version}/{REVOCATIONS.resource}"
"""Revocations are every hub's own, also where the objects live elsewhere."""
