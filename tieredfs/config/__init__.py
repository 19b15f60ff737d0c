"""Settings: metadata URLs, data URLs, sizes, codes; from text to values, with errors that say what would be right."""
