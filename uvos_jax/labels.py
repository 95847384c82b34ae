"""Reserved label values."""

VOID = 255  # uint8 label of pixels that are neither object nor background; they are ignored in scores
