"""Chaos: a fleet under load while replicas, etcd members and NATS servers are killed and frozen by a seeded schedule."""
