"""What parity tests share."""
