"""Small models, generated data and reference implementations that several test files share."""
