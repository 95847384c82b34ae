"""Jobs: what the command line runs over one video or many, with results on disk."""
