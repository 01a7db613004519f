"""Figures of fleets that no test has the time for: 100,000 nodes on one machine, a million in memory, and how cost grows.

`fleet` is `make bench-100k`, `share` is `make bench-1m`, `linear` plots what they found. `made` makes the fleets, `steps` keeps
what is done over an interruption, `watch` looks at the machine meanwhile, `test_*` run all of it at a hundredth of its size.
"""
