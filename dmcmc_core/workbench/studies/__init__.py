"""Studies: the logic and the claims of the notebooks, a module each; a notebook calls, shows and says what it means."""
