"""Jobs: score JSONL files, resume, read scored lines."""
