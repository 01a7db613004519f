"""Identities, certificates, joining and admission."""
