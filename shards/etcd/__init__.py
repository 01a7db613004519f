"""etcd over grpc.aio: endpoints, keys, leases and one watch stream."""
