"""The messages of Kubernetes' KMS v2 API, and what is generated from them."""
