"""One of N samples: answers, rules, expected accuracy."""
