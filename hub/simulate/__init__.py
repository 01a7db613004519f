"""`cloudhub simulate`: a fleet of simulated edge nodes over real TLS, with the agent's own session core and codec.

`command` runs it: `settings` are checked, `identities` and `enrolling` get every node its certificate, `crew` starts the
processes (`worker` → `fleet` → `node`), `load` makes pods and changes them through the API, `report` says what came of it.
Benches use the same parts. What a simulated node is not: it has no disk, so that an acknowledgement costs it no fsync, and
it starts no workloads, but reports them as running.
"""
