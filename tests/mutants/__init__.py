"""Small bugs that the tests must catch: the TOML files beside this one, and what runs them."""
