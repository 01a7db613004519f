"""SPIFFE: identities from a Workload API, the Workload API that the hub serves itself, and SPIRE as the authority above ours."""
