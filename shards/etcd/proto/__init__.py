"""Published messages of etcd, and what is generated from them."""
