"""Jobs of the command line: a video, its optical flow, or many videos to folders of results."""
