"""druthers: align language models with people's preferences by Direct Preference Optimization."""

__version__ = "0.1.0"
