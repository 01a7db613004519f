"""A key management service behind Kubernetes' KMS v2 plugin API, as a provider of keys."""
