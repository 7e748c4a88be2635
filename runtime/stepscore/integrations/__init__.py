"""Adapters with the call signatures of other people's programs."""
