"""Real servers on loopback for tests: what the hub talks to, with their faults."""
