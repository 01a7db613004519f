"""The Kubernetes REST face of the hub."""
