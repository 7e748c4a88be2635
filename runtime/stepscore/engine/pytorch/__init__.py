"""The engine on PyTorch, for bitsandbytes pairs; imported only when used."""
