"""Runtimes: how one container of a pod is started, watched and stopped on this kind of node."""
