"""Self-test and fidelity of a staged pair."""
