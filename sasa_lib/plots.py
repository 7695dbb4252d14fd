"""Every figure, one function each, one style."""
