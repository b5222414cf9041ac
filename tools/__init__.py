"""Scripts whose committed output the package reads; it never imports them."""
