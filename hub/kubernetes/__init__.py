"""A Kubernetes API server as the source of the fleet's objects: its client, what of it is followed, what is written."""
