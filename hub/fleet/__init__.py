"""The fleet page: what a browser shows of all nodes, read-only (ARCHITECTURE.md, "The fleet page")."""
