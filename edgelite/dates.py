"""Times as Kubernetes writes them, without the system's time functions. [pure] Runs on MicroPython."""

TIME_MAX = 253402300799  # the last second of the year 9999


def rfc3339(seconds: float) -> str:
    """Unix seconds as Kubernetes writes a time."""
    whole = min(max(0, int(seconds)), TIME_MAX)
    days, rest = divmod(whole, 86400)
    # Days to a civil date: Howard Hinnant, "chrono-compatible low-level date algorithms".
    days += 719468
    era, day_of_era = divmod(days, 146097)
    year_of_era = (day_of_era - day_of_era // 1460 + day_of_era // 36524 - day_of_era // 146096) // 365
    day_of_year = day_of_era - (365 * year_of_era + year_of_era // 4 - year_of_era // 100)
    shifted = (5 * day_of_year + 2) // 153
    day = day_of_year - (153 * shifted + 2) // 5 + 1
    month = shifted + 3 if shifted < 10 else shifted - 9
    year = year_of_era + era * 400 + (1 if month <= 2 else 0)
    return "%04d-%02d-%02dT%02d:%02d:%02dZ" % (year, month, day, rest // 3600, rest // 60 % 60, rest % 60)
