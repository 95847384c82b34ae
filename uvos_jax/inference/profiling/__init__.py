"""Speed, FLOPs and the time of a model's components."""
