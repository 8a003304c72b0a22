"""One loss term a file, named in the recipe; `criterion` weighs and adds them."""
