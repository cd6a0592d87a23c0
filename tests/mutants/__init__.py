"""Small bugs that the tests must catch, listed in TOML files, and the tool that runs them."""
