"""Image quality metrics: extractors, reference statistics and scores, each number with its identity."""
