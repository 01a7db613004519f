"""Builds what an agent is installed from: `make agent`. Nothing of it is part of hub or agent.

The same sources give the same bytes: times come from SOURCE_DATE_EPOCH (by default that of the last commit), names are
sorted, and modes are fixed.
"""
