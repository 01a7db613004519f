#!/usr/bin/env bash
# Makes shards/etcd/proto/*_pb2.py and .pyi from the .proto files beside them. Needs grpcio-tools 1.78.0 (newer ones
# demand a newer protobuf at run time); PYTHON names an interpreter that has it.
set -euo pipefail
cd "$(dirname "$0")/../.."
"${PYTHON:-python3}" -m grpc_tools.protoc -I. --python_out=. --pyi_out=. shards/etcd/proto/kv.proto shards/etcd/proto/rpc.proto
