"""One target per file. Each has `INSTRUMENTED`, the modules whose branches guide the search, and `check(data)`, which
raises on whatever is not documented: another error than those that callers handle, a bound exceeded, a round trip that
does not come back.
"""
