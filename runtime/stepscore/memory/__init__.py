"""Memory: estimates from the manifest, and settings that fit a limit."""
