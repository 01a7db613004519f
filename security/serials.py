"""Serial numbers of certificates in one text form: lower-case hex without leading zeros. [pure]"""


def serial_text(text: str) -> str:
    """From what tools print: any case, with or without colons, "0x" and leading zeros; "" for what is no serial number."""
    digits = text.strip().lower().replace(":", "").removeprefix("0x").lstrip("0")
    return digits if len(digits) <= 40 and all(d in "0123456789abcdef" for d in digits) else ""
