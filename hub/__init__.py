"""The cloud hub: a Kubernetes-style API, its store, and the edge-cloud channel."""
