"""The base of every error of this package. [pure]"""


class SecurityError(Exception):
    """What identities, certificates, joining and admission raise. The message gives the facts and the remedy."""
