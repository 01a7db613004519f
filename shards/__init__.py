"""Slots, their owners and their claims."""
