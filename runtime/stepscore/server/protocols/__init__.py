"""Wire protocols: what a client sends -> requests to score, outcomes -> what it reads. Pure; no I/O."""
