"""Model families: config and tensor names."""
