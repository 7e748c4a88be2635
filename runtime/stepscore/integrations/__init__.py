"""Integrations: adapters with the call signatures of other programs."""
