"""F2Net: Learning to Focus on the Foreground (Liu et al., AAAI 2021)."""
