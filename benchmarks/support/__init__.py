"""What benchmarks share: machine facts, workers, workloads, shapes."""
