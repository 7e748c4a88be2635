"""Prompts: chat template, and the encoder from text to token ids and step ends."""
