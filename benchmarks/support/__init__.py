"""Shared by benchmarks: options, results, machine facts, workers, workloads, shapes."""
