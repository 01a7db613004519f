"""What a kubelet serves: exec, attach, port-forward, logs and figures, for the API server and for this hub's own API."""
