"""Tables, figures and the report: everything a reader sees, made from the JSON records of evaluated sample sets."""
