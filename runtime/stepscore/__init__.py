"""Step rewards of an implicit process reward model, at low precision, without PyTorch."""
