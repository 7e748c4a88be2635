"""JSONL in, JSONL out: lines, jobs, resume."""
