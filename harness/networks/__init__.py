"""The networks, one file per framework; their sizes and initial weights, shared by both."""
