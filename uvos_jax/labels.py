"""Values of label maps that mean the same everywhere."""

VOID = 255  # uint8 label of pixels that count neither as an object nor as background
